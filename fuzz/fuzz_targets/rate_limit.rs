//! Limits that change at any moment: what passes never exceeds them, and whoever waits is told when.
#![no_main]

use std::time::Duration;

use drover_fuzz::bounded;
use drover_rate_limit::{Cost, Direction, Limit, Limiter, Limits, Rate, Waiting};

fn rate(bytes: &[u8]) -> Option<Rate> {
    let number = u64::from_le_bytes(bytes.try_into().ok()?);
    let (per_second, burst) = (number >> (number % 61), number >> (number % 53));
    Rate::new(per_second, (number & 1 == 1).then_some(burst)).ok()
}

fn limits(bytes: &[u8]) -> Limits {
    let mut rates = bytes.chunks(8).map(rate);
    let mut limit = || Limit { requests: rates.next().flatten(), bytes: rates.next().flatten() };
    Limits { total: limit(), inbound: limit(), outbound: limit() }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| {
    let mut now = Duration::ZERO;
    let mut limiter = Limiter::new(limits(&data[..data.len().min(48)]), now);
    let mut waiting = [Waiting::default(); 2];
    for step in data.get(48..).unwrap_or_default().chunks(10) {
        let mut number = [0; 8];
        number[..step.len().saturating_sub(2)].copy_from_slice(step.get(2..).unwrap_or_default());
        let number = u64::from_le_bytes(number);
        let direction = if step[0] & 1 == 0 { Direction::Inbound } else { Direction::Outbound };
        match step[0] >> 5 {
            0 => limiter.set_limits(limits(&number.to_le_bytes()), now),
            1 => now = now.saturating_add(Duration::from_nanos(number)),
            2 => {
                let place = &mut waiting[usize::from(step[0] & 1)];
                limiter.charge(Cost { direction, bytes: number }, place, now);
            }
            3 => waiting[usize::from(step[0] & 1)].forget(),
            _ => {
                let cost = Cost { direction, bytes: number };
                let place = &mut waiting[usize::from(step[0] & 1)];
                if let Err(throttled) = limiter.take(cost, place, now) {
                    // A debt of more seconds than an instant can have is one that nobody lives to see paid.
                    if throttled.until == Duration::MAX {
                        return;
                    }
                    assert!(throttled.until > now, "whoever waits waits for something");
                    assert!(
                        limiter.take(cost, place, throttled.until).is_ok(),
                        "nobody is told an instant at which he still has to wait"
                    );
                    now = throttled.until;
                }
            }
        }
    }
}));
