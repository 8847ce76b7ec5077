"""The style sheet of every page, and its hash for the Content-Security-Policy."""

import base64
import hashlib
from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--ink:#172030;--soft:#566173;--line:#dbe1ea;--back:#f3f5f9;--card:#fff;--accent:#2456b8;
--good:#0f6f42;--bad:#b3211a;--wait:#855400;--goodback:#e3f5eb;--badback:#fdeae8;--waitback:#fdf2da;--bar:#3f74d8;
--collected:#8a63d2;--failed:#f3b9b4}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf2;--soft:#a3aebf;--line:#2d3747;--back:#0f141c;--card:#171e29;
--accent:#8fb4ff;--good:#5fd39a;--bad:#ff938a;--wait:#f2bd62;--goodback:#12291f;--badback:#331a1a;--waitback:#2e2412;
--bar:#5b8def;--collected:#a88be8;--failed:#6b2b29}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header.top,footer{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header.top{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;align-items:center;padding-top:1.1rem;padding-bottom:.9rem}
header.top p{margin:0}
.brand{font-weight:650;font-size:1.05rem}
.brand a{color:inherit;text-decoration:none}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:var(--card);padding:.4rem .8rem;z-index:1}
form{display:flex;gap:.4rem;margin-left:auto;flex:0 1 27rem;align-items:center}
form label{color:var(--soft);font-size:.9rem}
input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--soft);border-radius:.4rem;
padding:.3rem .6rem;flex:1;min-width:0}
button{font:inherit;color:var(--card);background:var(--accent);border:0;border-radius:.4rem;padding:.35rem .9rem}
a{color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:.2rem}
h1{font-size:1.35rem;line-height:1.3;margin:0;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:0 0 .7rem;overflow-wrap:anywhere}
h3{font-size:.95rem;margin:1rem 0 .35rem;overflow-wrap:anywhere}
.soft,footer,small{color:var(--soft)}
section{margin:0 0 1.6rem}
.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}
.verdict{border-radius:.7rem;padding:1rem 1.2rem;margin:0 0 1.2rem;background:var(--card);border:1px solid var(--line);
border-left:.4rem solid var(--soft)}
.verdict.good{background:var(--goodback);border-left-color:var(--good)}
.verdict.wait{background:var(--waitback);border-left-color:var(--wait)}
.verdict.bad{background:var(--badback);border-left-color:var(--bad)}
.verdict *{color:var(--ink)}
.verdict .level{text-transform:uppercase;letter-spacing:.04em}
.verdict.good .level{color:var(--good)}.verdict.wait .level{color:var(--wait)}.verdict.bad .level{color:var(--bad)}
.verdict ul{margin:.5rem 0 0;padding-left:1.2rem}
.verdict p{margin:.5rem 0 0;overflow-wrap:anywhere}
.stale .good,.stale .wait,.stale .bad{color:var(--soft)}
.stale .card,.stale .panel{border-style:dashed}
.cards{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));margin:0 0 1.6rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:.75rem 1rem;min-width:0}
.card dt,.card dd{margin:0;overflow-wrap:anywhere}
.card dt{color:var(--soft);font-size:.85rem}
.card .value{font-size:1.25rem;font-weight:620;font-variant-numeric:tabular-nums}
.card .detail{color:var(--soft);font-size:.85rem}
.panel{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:1rem 1.2rem;min-width:0}
.columns{display:grid;gap:1.2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));align-items:start;
margin:0 0 .4rem}
.columns section{margin:0 0 1.2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.panel p{margin:.3rem 0 .5rem}
caption{text-align:left;color:var(--soft);font-size:.85rem;padding-bottom:.3rem}
th,td{padding:.4rem .7rem .4rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
thead th,tbody th{font-weight:500;color:var(--soft);font-size:.85rem;overflow-wrap:normal}
td.n,th.n{text-align:right;white-space:nowrap}
td.keep{white-space:nowrap}
td.more{padding-top:0}
tr.joined td{border-bottom:0}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--back);border:1px solid var(--line);
border-radius:.3rem;padding:.05rem .3rem;overflow-wrap:anywhere}
details{margin-top:.7rem}
summary{cursor:pointer;color:var(--accent)}
.series{margin:0 0 .9rem}
.series .head{display:flex;justify-content:space-between;gap:1rem;font-size:.85rem;color:var(--soft);margin:0 0 .2rem}
.series svg{display:block;width:100%;height:4.5rem;border-bottom:1px solid var(--line);background:
linear-gradient(var(--line),var(--line)) 0 0/100% 1px no-repeat}
.series.low svg{height:2.6rem}
.axis{display:flex;justify-content:space-between;font-size:.8rem;color:var(--soft);margin-top:-.6rem}
rect.amount{fill:var(--bar)}rect.collected{fill:var(--collected)}rect.seconds{fill:var(--soft)}
rect.failures{fill:var(--bad)}rect.failed{fill:var(--failed)}
.key{display:inline-block;width:.7em;height:.7em;border-radius:.15em;margin-right:.35em}
.key.amount{background:var(--bar)}.key.collected{background:var(--collected)}.key.failed{background:var(--failed)}
.legend span{margin-right:.35em}.legend .key:not(:first-child){margin-left:.8em}
footer{font-size:.85rem;padding-top:.4rem;padding-bottom:2rem}
footer p{margin:.2rem 0}
@media(max-width:52rem){
main,header.top,footer{padding-left:.8rem;padding-right:.8rem}
.panel{padding:.8rem .9rem}
.cards{grid-template-columns:repeat(auto-fit,minmax(9rem,1fr))}
form{flex-basis:100%;margin:0}
form label{position:absolute;left:-99rem}
table.wide,.wide tbody,.wide caption{display:block}
.wide thead{position:absolute;left:-99rem}
.wide tr{display:grid;grid-template-columns:repeat(auto-fit,minmax(6.3rem,1fr));gap:.3rem .8rem;border:1px solid
var(--line);border-radius:.5rem;padding:.5rem .8rem;margin:0 0 .6rem}
.wide td,.wide td.n{border:0;padding:0;text-align:left;white-space:normal}
.wide td::before{content:attr(data-label);display:block;color:var(--soft);font-size:.8rem}
.wide td.more{grid-column:1/-1}.wide td.more::before{content:none}
.wide td.blank{display:none}
.wide tr.joined{margin:0;border-bottom:0;border-radius:.5rem .5rem 0 0;padding-bottom:.2rem}
.wide tr.joined+tr{border-top:0;border-radius:0 0 .5rem .5rem;padding-top:0}
.axis span:nth-child(even){display:none}
}
"""
STYLE_HASH: Final = f"sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}"
