//! Waiting for a state, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Pause between two looks at a state: short against what is waited for, long against the cost of a look.
const POLL: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value. Errors are carried into the message of the deadline's error.
///
/// # Errors
/// If the deadline passes first: what was waited for, and the last thing seen.
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let seen = look();
        if let Ok(Some(value)) = seen {
            return Ok(value);
        }
        if Instant::now() >= end {
            return expired(what, deadline, seen.err());
        }
        thread::sleep(POLL);
    }
}

/// [`eventually`] for asynchronous looks.
///
/// # Errors
/// If the deadline passes first.
pub async fn eventually_async<T, F>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let end = Instant::now() + deadline;
    loop {
        let seen = look().await;
        if let Ok(Some(value)) = seen {
            return Ok(value);
        }
        if Instant::now() >= end {
            return expired(what, deadline, seen.err());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn expired<T>(what: &str, deadline: Duration, error: Option<anyhow::Error>) -> anyhow::Result<T> {
    match error {
        Some(error) => Err(error.context(format!("waited {deadline:?} for {what}"))),
        None => bail!("waited {deadline:?} for {what}"),
    }
}
