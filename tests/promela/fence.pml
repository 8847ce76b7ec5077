/*
 * The fence: whatever the order of steps, a deposed leader writes nothing, and no unit of work is charged twice or lost.
 *
 * The docstring of controller/election is the specification in words. This model has the same rules in steps. A step is
 * what the server does atomically: a statement, or the grant of a lock. There is no time: a replica may pause before any
 * step, for as long as it likes. `make model` checks every interleaving of three replicas and three terms. Each #ifdef
 * named in check.py is a mutant that leaves out one rule and must break a claim.
 *
 * Safety: the assertions. Liveness, with -DLIVENESS: the two formulas at the end.
 */

#ifndef LIVENESS
#define REPLICAS 3
#define WORKERS 1               /* of each replica */
#define UNITS 2
#else
#define REPLICAS 2
#define WORKERS 2
#define UNITS 2
#endif
#define TERMS 3                 /* bounds the search */
#define NONE REPLICAS

byte lock = NONE;               /* the replica whose session holds the advisory lock */
byte stacked;                   /* how often that session has taken it */
byte term, holder = NONE;       /* the row of billing_leadership */
byte queued = NONE;             /* the replica whose mint waits for, or has, that table in exclusive mode */
bool share[REPLICAS * WORKERS]; /* batches that have passed the fence and hold the row `for share` */
byte sharing;                   /* how many of them there are */
byte charged;                   /* units that are charged; each batch charges the next one */

byte leads[REPLICAS];           /* the term under which a replica believes that it leads, or 0 */
byte working[REPLICAS];         /* its workers that are at work on a batch */

byte server;                    /* the primary: 0, and 1 after the promotion of a server that lags by one mint */
byte older_term, older_holder = NONE;
bool written;                   /* something was committed since the newest mint */
bool frozen;                    /* one replica's elector takes no step any more */

/* A mint waits for every batch that has passed the fence. */
#ifdef MINT_DOES_NOT_WAIT
#define MINT_MAY_WRITE true
#else
#define MINT_MAY_WRITE (sharing == 0)
#endif

/* The fence waits behind a mint, even if that mint is still waiting: the server queues table locks fairly. */
#ifdef MINT_WITHOUT_THE_QUEUE
#define FENCE_MAY_READ true
#else
#define FENCE_MAY_READ (queued == NONE)
#endif

/* The fence compares the term and the holder. */
#if defined(FENCE_GONE)
#define FENCE_PASSES true
#elif defined(HOLDER_NOT_COMPARED)
#define FENCE_PASSES (mine == term)
#else
#define FENCE_PASSES (mine == term && holder == me)
#endif

/* A replica that has lost its session opens another one and contends again. */
#ifdef NEVER_CONTENDS_AGAIN
#define AFTER_A_LOSS end_frozen
#else
#define AFTER_A_LOSS end_standby
#endif

inline end_transaction() {
    if
    :: share[id] -> share[id] = false; sharing--
    :: else
    fi
}

inline end_batch() { end_transaction(); working[me]--; mine = 0; unit = 0; session = 0 }

/* Charges batches for as long as its replica believes that it leads. It asks before a batch, and not before its steps. */
proctype Worker(byte me; byte id) {
    byte mine, unit, session;
    bool again;                 /* only for REPLAYS_AFTER_A_LOST_ANSWER */
end_idle:
    do
    :: atomic { leads[me] != 0 && charged < UNITS -> mine = leads[me]; working[me]++ };
fence:
        atomic {
            FENCE_MAY_READ -> session = server;
            if
            :: FENCE_PASSES ->
#if !defined(FOR_SHARE_DROPPED) && !defined(FENCE_GONE)
                share[id] = true; sharing++;
#endif
                if :: again :: else -> unit = charged fi
            :: else ->
                if :: leads[me] == mine -> leads[me] = 0 :: else fi;
                end_batch(); goto end_idle
            fi
        };
        if
        /* The commit. The process may have died after sending it: the server still carries it out. */
        :: atomic { session == server ->
                assert(mine == term);       /* no commit of an older term after a newer one was minted */
#ifndef LIVENESS                            /* there, two workers share the units out, and never finish */
                assert(unit == charged);    /* no unit charged twice, and none left out */
                charged++;
#endif
                written = true;
#ifdef REPLAYS_AFTER_A_LOST_ANSWER
                end_transaction();
                if :: charged < UNITS && !again -> again = true; goto fence :: again = false fi;
#endif
                end_batch() }
        /* The transaction is lost: an error, the end of its session, or the end of its server. */
#ifdef LIVENESS
        :: atomic { session != server -> end_batch() }
#else
        :: atomic { end_batch() }
#endif
        fi
    od
}

/* Waits for the lock, mints, leads, and resigns. After any failure it closes its session, which frees the lock. */
proctype Elector(byte me) {
    byte session;
end_standby:
    atomic {
        lock == NONE && term < TERMS -> lock = me; session = server;
        if :: stacked = 1 :: stacked = 2 fi     /* the wait ended just as the lock was granted */
    };
    /* Winning: the table first, then the term. */
    do
    :: atomic { lock == me && session == server && queued == NONE && term < TERMS -> queued = me }
    :: atomic { lock == me && session == server && queued == me && MINT_MAY_WRITE ->
            older_term = term; older_holder = holder; written = false;
            term++; holder = me; queued = NONE; leads[me] = term; break }
    :: atomic { lock != me || session != server -> goto AFTER_A_LOSS }
    :: atomic { lock == me && session == server && queued != me && term == TERMS -> lock = NONE; goto end_standby }
#ifndef LIVENESS
    :: atomic { lock == me && session == server && queued == me -> queued = NONE; lock = NONE; goto end_standby }
#endif
    od;
    /* Leading. The loss of a session may be noticed any time later, and a batch in hand continues meanwhile. */
    if
    :: atomic { lock != me || session != server -> leads[me] = 0; goto AFTER_A_LOSS }
#ifdef LIVENESS
    :: atomic { !frozen -> frozen = true; goto end_frozen }   /* one never notices, and its workers go on */
#else
    :: atomic { leads[me] = 0 }                 /* draining: no batch starts any more */
#endif
    fi;
#ifndef RESIGNS_BEFORE_THE_COMMIT
    working[me] == 0;
#endif
    atomic {
        if
        :: lock == me && session == server ->
            assert(working[me] == 0);           /* the lock was kept until the last commit */
#ifdef UNLOCKS_ONCE
            stacked--;
#else
            stacked = 0;
#endif
            if :: stacked == 0 -> lock = NONE :: else fi;
            assert(lock != me)                  /* resigning frees the lock */
        :: else
        fi
    };
end_frozen:
    false
}

/* Ends lock sessions for any reason: silence, eviction, a lost network, a dead process. Once, a lagging server is promoted. */
proctype Server() {
    byte each;
end_server:
    do
#ifdef LIVENESS
    :: break                                    /* faults may end */
#endif
    :: atomic { lock != NONE && term < TERMS ->
            if :: queued == lock -> queued = NONE :: else fi;
            lock = NONE }
#ifndef LIVENESS
    :: atomic { server == 0 && term > 0 && !written ->
            server = 1; lock = NONE; queued = NONE; term = older_term; holder = older_holder; sharing = 0;
            for (each : 0 .. REPLICAS * WORKERS - 1) { share[each] = false };
            each = 0 }
#endif
    od
}

init {
    byte each;
    atomic {
        for (each : 0 .. REPLICAS - 1) { run Elector(each) };
        for (each : 0 .. REPLICAS * WORKERS - 1) { run Worker(each / WORKERS, each) };
        run Server()
    }
}

#ifdef LIVENESS
/* A free lock is taken, and a mint is not starved by batches. */
ltl taken { [] ((lock == NONE && term < TERMS) -> <> (lock != NONE || term == TERMS)) }
ltl minted { [] (queued != NONE -> <> (queued == NONE)) }
#endif
