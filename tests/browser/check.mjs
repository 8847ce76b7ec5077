// Opens pages in an installed Chromium and reports what a person would meet there, as JSON on standard output.
//
//   node check.mjs CHROMIUM FOLDER PLAN
//
// PLAN is a JSON array of {name, url, width, height, dark, cropped, rules}. The URLs lead to the program's own server, so its
// Content-Security-Policy applies. FOLDER receives a picture of each: of the whole page, or cropped to the window.
// With rules, the page is also checked against the rules of axe.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const require = createRequire(import.meta.url);
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [executablePath, folder, plan] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
});
const results = [];
for (const { name, url, width, height, dark, cropped, rules } of JSON.parse(plan)) {
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: dark ? "dark" : "light",
    reducedMotion: "reduce",
  });
  const page = await context.newPage();
  const errors = [];
  const foreign = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => {
    const asked = new URL(request.url());
    if (asked.protocol !== "data:" && asked.host !== new URL(url).host) foreign.push(request.url());
  });
  await page.goto(url, { waitUntil: "load" });
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: !cropped });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  await page.keyboard.press("Tab");
  const focused = await page.evaluate(() => document.activeElement.className);
  let checked = { violations: [], passes: [] };
  if (rules) {
    // evaluated through the debugging protocol, which the page's policy does not restrict
    await page.evaluate(axe);
    checked = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  }
  results.push({
    name,
    errors,
    foreign,
    focused,
    overflow,
    violations: checked.violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.target).join(" ")}`),
    passes: checked.passes.length,
  });
  await context.close();
}
await browser.close();
console.log(JSON.stringify(results));
