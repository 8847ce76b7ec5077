/*
 * The bounds: no session of a leader that may still believe that it leads is ended, and a silent holder is replaced in time.
 *
 * The docstring of controller/election is the specification in words. This model has a leader, two standbys and a discrete
 * clock. Steps take no time, but a replica may freeze before any step and thaw later, and a ping or its answer may be on
 * its way for any time. `make model` checks every interleaving. Each #ifdef named in check.py is a mutant that leaves out
 * one rule and must break a claim.
 */

#define P 1                     /* ping interval */
#define D 4                     /* a leader's deadline, counted from before its last good ping */
#define W 2                     /* a standby's longest wait for the lock */
#define MARGIN 1                /* a standby counts this much more than the deadline */
#ifdef SERVER_TIMEOUT_BEFORE_THE_DEADLINE
#define T 3
#else
#define T 8                     /* the server ends a session that is silent for this long */
#endif
#ifdef STANDBY_COUNTS_LESS_THAN_THE_DEADLINE
#define EXPIRES (D - 1)
#else
#define EXPIRES (D + MARGIN)
#endif
#define BOUND (W + D + MARGIN)  /* one wait until a standby sees the last statement, and then the deadline */
#define LAST 8                  /* bounds the search */
#define REPLICAS 3
#define NONE REPLICAS

byte now;

/* On the server: the holder of the lock, and of each session its last statement, as pg_stat_activity shows it. */
byte lock = NONE;
bool open[REPLICAS];
byte mark[REPLICAS];            /* stands for the moment at which the last statement ended */
byte spoke_at[REPLICAS];
bool stated[REPLICAS];          /* that statement states a deadline */
bool waiting[REPLICAS];         /* for the lock */
byte wait_ends_at[REPLICAS];
bool pinging[REPLICAS];         /* a ping is on its way to the server */

/* On its way to a replica. */
mtype = { none, granted, not_granted, pinged };
mtype answer[REPLICAS] = none;
byte seen_holder[REPLICAS], seen_mark[REPLICAS];

/* In a replica. */
bool leading[REPLICAS];
byte believes_until[REPLICAS];  /* a leader's deadline */
byte sent_at[REPLICAS];         /* when it sent its last wait or ping */
bool frozen[REPLICAS], has_frozen[REPLICAS];   /* at most once each, which bounds the search */
bool steady[REPLICAS] = true;   /* has never frozen nor led */
bool died;

#define LEADS(i) (leading[i] && now < believes_until[i])
#define SETTLED(i) (frozen[i] || leading[i] || waiting[i] || !open[i])

inline speak(i, states) { mark[i]++; spoke_at[i] = now; stated[i] = states }

/* The rest is of no interest any more, and would only make more states. */
inline forget(i) {
    open[i] = false; leading[i] = false; frozen[i] = false; steady[i] = false; pinging[i] = false; stated[i] = false;
    answer[i] = none; believes_until[i] = 0; sent_at[i] = 0; mark[i] = 0; spoke_at[i] = 0
}

inline end_session(i) {
    assert(!LEADS(i));          /* it may believe until its deadline, and no standby ends its session before */
    forget(i); lock = NONE
}

/* The text of the wait states the deadline too: a standby that is frozen in its wait may be handed the lock. */
inline grant(i) {
#ifdef WAIT_STATES_NO_DEADLINE
    speak(i, false);
#else
    speak(i, true);
#endif
    lock = i; waiting[i] = false; wait_ends_at[i] = 0; answer[i] = granted
}

proctype Replica(byte me) {
    byte holder = NONE, holder_mark, since, rest;   /* the holder that a standby watches, and since when it has been silent */
end:
    do
    /* A standby sends its next wait, which is no longer than the holder's silence has left to run. */
    :: atomic { !frozen[me] && open[me] && !leading[me] && !waiting[me] && answer[me] == none && now < LAST ->
            rest = W;
#ifndef WAIT_OUTLASTS_THE_SILENCE
            if :: holder != NONE && since + EXPIRES < now + W -> rest = since + EXPIRES - now :: else fi;
#endif
            sent_at[me] = now; wait_ends_at[me] = now + rest; rest = 0;
            waiting[me] = true }
    /* The lock was granted. The deadline counts from before the wait was sent. */
    :: atomic { !frozen[me] && answer[me] == granted ->
            answer[me] = none; leading[me] = true; steady[me] = false; holder = NONE; holder_mark = 0; since = 0;
#ifdef FIRST_DEADLINE_FROM_THE_GRANT
            believes_until[me] = now + D
#else
            believes_until[me] = sent_at[me] + D
#endif
            }
    /* The wait is over. A holder that has said something new is silent from now on; an expired one is evicted. */
    :: atomic { !frozen[me] && answer[me] == not_granted ->
            answer[me] = none;
            if
            :: seen_holder[me] != holder || seen_mark[me] != holder_mark ->
                holder = seen_holder[me]; holder_mark = seen_mark[me];
#ifdef SILENCE_FROM_BEFORE_THE_WAIT
                since = sent_at[me]
#else
                since = now
#endif
            :: else
            fi;
            seen_holder[me] = NONE; seen_mark[me] = 0; sent_at[me] = 0 };
        if
        /* Another standby may be faster. So the server compares the session, its statement and the lock again. */
        :: atomic { !frozen[me] && holder != NONE && now >= since + EXPIRES ->
                if
#ifdef EVICTS_WITHOUT_THE_MATCH
                :: lock != NONE && lock != me -> end_session(lock)
#else
                :: lock == holder && mark[holder] == holder_mark -> end_session(lock)
#endif
                :: else
                fi;
                holder = NONE; holder_mark = 0; since = 0 }
        :: holder == NONE || now < since + EXPIRES
        fi
    /* A leader pings. A good answer counts from before the ping was sent, and a late one has no effect. */
    :: atomic { !frozen[me] && LEADS(me) && !pinging[me] && answer[me] == none && now >= sent_at[me] + P && now < LAST ->
            sent_at[me] = now; pinging[me] = true }
    :: atomic { !frozen[me] && answer[me] == pinged ->
            answer[me] = none;
            if
#ifdef DEADLINE_FROM_AFTER_THE_PING
            :: LEADS(me) -> believes_until[me] = now + D
#else
            :: LEADS(me) -> believes_until[me] = sent_at[me] + D
#endif
            :: else
            fi }
    /* A leader past its deadline stops, and closes its session. */
    :: atomic { !frozen[me] && leading[me] && !LEADS(me) && open[me] ->
            if :: lock == me -> lock = NONE :: else fi;
            forget(me) }
    od
}

/* The server's part in a session, and the session's faults. */
proctype Session(byte me) {
end:
    do
    :: atomic { waiting[me] && lock == NONE -> grant(me) }
    :: atomic { waiting[me] && lock != NONE && now >= wait_ends_at[me] ->
            waiting[me] = false; wait_ends_at[me] = 0; answer[me] = not_granted;
            if
            :: stated[lock] -> seen_holder[me] = lock; seen_mark[me] = mark[lock]
            :: else -> seen_holder[me] = NONE; seen_mark[me] = 0
            fi }
    :: atomic { pinging[me] && open[me] -> pinging[me] = false; speak(me, true); answer[me] = pinged }
    :: atomic { lock == me && now >= spoke_at[me] + T -> end_session(me) }
    :: atomic { me != 2 && !has_frozen[me] && open[me] && now < LAST -> frozen[me] = true; has_frozen[me] = true; steady[me] = false }
    :: atomic { frozen[me] -> frozen[me] = false }
    /* Once, a leader dies. */
    :: atomic { lock == me && leading[me] && !died -> died = true;
            forget(me); lock = NONE }
    od
}

/* Stands still while the server, or a replica that isn't frozen, can act. */
#define DUE(i) ((waiting[i] && (lock == NONE || now >= wait_ends_at[i])) || (lock == i && now >= spoke_at[i] + T))
#define WATCHES(i) (steady[i] && lock != i)
proctype Clock() {
end:
    do
    :: atomic { (now < LAST && SETTLED(0) && SETTLED(1) && SETTLED(2) && !DUE(0) && !DUE(1) && !DUE(2)) ->
            /* A silent holder is replaced in time, if another replica has been there all along. */
            assert(lock == NONE || now < spoke_at[lock] + BOUND || !(WATCHES(0) || WATCHES(1) || WATCHES(2)));
            now++ }
    od
}

init {
    byte i;
    atomic {
        for (i : 0 .. REPLICAS - 1) { open[i] = true; seen_holder[i] = NONE; run Session(i); run Replica(i) };
        lock = 0; leading[0] = true; believes_until[0] = D; stated[0] = true; steady[0] = false; i = 0;
        run Clock()
    }
}
