//! Limits that change at any moment: what passes never exceeds them, and whoever waits is told when.
//!
//! An input is a list of steps of six bytes: what is done, to what, and a number or a rate.
#![no_main]

use std::time::Duration;

use drover_fuzz::bounded;
use drover_rate_limit::{Cost, Direction, Limit, Limiter, Limits, Rate, Waiting};

/// Nobody's requests are that many in an input that still says something new.
const STEPS_MAX: usize = 512;

/// Numbers of every size, small ones exactly.
fn number([low, high, shift]: [u8; 3]) -> u64 {
    u64::from(u16::from_le_bytes([low, high])) << (shift % 49)
}

/// What one bucket could ever have let pass, in billionths, counted without the limiter: it starts full, and nothing but time adds
/// to it.
#[derive(Clone, Copy)]
struct Ledger {
    rate: Rate,
    earned: u128,
    spent: u128,
}

impl Ledger {
    fn new(rate: Rate) -> Self {
        Self { rate, earned: billionths(rate.burst()), spent: 0 }
    }

    fn wait(&mut self, time: Duration) {
        self.earned =
            self.earned.saturating_add(time.as_nanos().saturating_mul(self.rate.per_second().into()));
    }

    /// A cost above the burst passes when the bucket is full, and is owed.
    fn pass(&mut self, cost: u64) {
        let needed = self.spent.saturating_add(billionths(cost.min(self.rate.burst())));
        assert!(needed <= self.earned, "{needed} billionths of {} have passed", self.earned);
        self.charge(cost);
    }

    fn charge(&mut self, cost: u64) {
        self.spent = self.spent.saturating_add(billionths(cost));
    }
}

fn billionths(tokens: u64) -> u128 {
    u128::from(tokens) * 1_000_000_000
}

/// A limiter, and the ledgers of its six buckets: requests and bytes, of the total and of each direction.
struct World {
    limiter: Limiter,
    ledgers: [Option<Ledger>; 6],
    waiting: [Waiting; 2],
    now: Duration,
}

impl World {
    fn set(&mut self, bucket: usize, rate: Option<Rate>) {
        let ledger = &mut self.ledgers[bucket];
        match (ledger.as_mut(), rate) {
            (Some(kept), Some(rate)) => kept.rate = rate,
            _ => *ledger = rate.map(Ledger::new),
        }
        let rates = self.ledgers.map(|ledger| ledger.map(|ledger| ledger.rate));
        let limit = |at: usize| Limit { requests: rates[at], bytes: rates[at + 1] };
        let limits = Limits { total: limit(0), inbound: limit(2), outbound: limit(4) };
        self.limiter.set_limits(limits, self.now);
        assert_eq!(self.limiter.limits(), limits);
    }

    fn wait_until(&mut self, then: Duration) {
        let time = then.saturating_sub(self.now);
        self.ledgers.iter_mut().flatten().for_each(|ledger| ledger.wait(time));
        self.now = self.now.max(then);
    }

    /// Has one request's cost taken from its buckets.
    fn pay(&mut self, cost: Cost, pay: fn(&mut Ledger, u64)) {
        let own = if cost.direction == Direction::Inbound { 2 } else { 4 };
        for first in [0, own] {
            for (bucket, tokens) in [(first, 1), (first + 1, cost.bytes)] {
                if let Some(ledger) = &mut self.ledgers[bucket] {
                    pay(ledger, tokens);
                }
            }
        }
    }

    /// A request, which waits as long as it is told to where `waits`. Whether there is a time at which it passes.
    fn request(&mut self, cost: Cost, waits: bool) -> bool {
        let place = &mut self.waiting[usize::from(cost.direction == Direction::Inbound)];
        let throttled = match self.limiter.take(cost, place, self.now) {
            Ok(()) => {
                self.pay(cost, Ledger::pass);
                return true;
            }
            Err(throttled) => throttled,
        };
        assert!(throttled.until > self.now, "whoever waits waits for something");
        if !waits {
            return true;
        }
        // A debt of more seconds than an instant can have is one that nobody lives to see paid.
        if throttled.until == Duration::MAX {
            return false;
        }
        self.wait_until(throttled.until);
        let place = &mut self.waiting[usize::from(cost.direction == Direction::Inbound)];
        let now = self.limiter.take(cost, place, self.now);
        assert!(now.is_ok(), "nobody is told an instant at which he still has to wait");
        self.pay(cost, Ledger::pass);
        true
    }
}

fn run(data: &[u8]) {
    let limiter = Limiter::new(Limits::default(), Duration::ZERO);
    let mut world =
        World { limiter, ledgers: [None; 6], waiting: Default::default(), now: Duration::ZERO };
    for step in data.chunks_exact(6).take(STEPS_MAX) {
        let &[action, what, a, b, c, d] = step else { unreachable!("six bytes") };
        let direction = if what & 1 == 0 { Direction::Inbound } else { Direction::Outbound };
        let cost = Cost { direction, bytes: number([a, b, c]) };
        let before = world.limiter.counters();
        match action % 8 {
            0 => world.set(usize::from(what) % 6, None),
            1 | 2 => {
                // With a burst of its own, or with the usual one.
                let burst = (action % 8 == 1).then_some(u64::from(d) << (c % 32));
                if let Ok(rate) = Rate::new(number([a, b, c]), burst) {
                    world.set(usize::from(what) % 6, Some(rate));
                }
            }
            3 => world.wait_until(world.now.saturating_add(Duration::from_nanos(cost.bytes))),
            4 => {
                let place = &mut world.waiting[usize::from(direction == Direction::Inbound)];
                world.limiter.charge(cost, place, world.now);
                world.pay(cost, Ledger::charge);
            }
            5 => world.waiting[usize::from(direction == Direction::Inbound)].forget(),
            6 => drop(world.request(cost, false)),
            _ => {
                if !world.request(cost, true) {
                    return;
                }
            }
        }
        let after = world.limiter.counters();
        assert!(
            after.requests >= before.requests && after.bytes >= before.bytes && after.time >= before.time
        );
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| run(data)));
