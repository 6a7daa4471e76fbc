//! One thread waits for the end of every process, so that the agent's task hears of it at once.
//!
//! A pidfd becomes readable when its process has ended. The thread sleeps in epoll over all of them. (tokio's own way
//! to wait on a descriptor, `AsyncFd`, asks for an unsafe promise about the descriptor that this needs not make.)

use std::{
    collections::BTreeMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
};
use tokio::sync::oneshot;
use tracing::error;

/// Ends that are taken from the kernel at a time.
const BATCH: usize = 64;

/// The way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct DeathWatch {
    epoll: Arc<OwnedFd>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_key: u64,
    ends: BTreeMap<u64, oneshot::Sender<()>>,
}

impl DeathWatch {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll instance")?;
        let watch = Self { epoll: Arc::new(epoll), waiting: Arc::default() };
        let thread = watch.clone();
        thread::Builder::new()
            .name("death-watch".to_owned())
            .spawn(move || thread.run())
            .context("cannot start the death watch's thread")?;
        Ok(watch)
    }

    /// Gives a future that is done when the process of `pidfd` has ended. The watch holds as long as any copy of the
    /// descriptor is open.
    pub(crate) fn end_of(&self, pidfd: BorrowedFd<'_>) -> io::Result<impl Future<Output = ()> + use<>> {
        let (ended, end) = oneshot::channel();
        let key = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.last_key += 1;
            let key = waiting.last_key;
            waiting.ends.insert(key, ended);
            key
        };
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        if let Err(error) = epoll::add(&*self.epoll, pidfd, EventData::new_u64(key), flags) {
            self.take(key);
            return Err(error.into());
        }
        Ok(async move {
            // The thread lives as long as the process; without it nothing would ever be known to have ended.
            if end.await.is_err() {
                std::future::pending().await
            }
        })
    }

    fn take(&self, key: u64) -> Option<oneshot::Sender<()>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).ends.remove(&key)
    }

    fn run(self) {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match epoll::wait(&*self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => {
                    error!(%error, "the death watch cannot wait any more");
                    return;
                }
            }
            for event in &events {
                let data = event.data;
                if let Some(ended) = self.take(data.u64()) {
                    ended.send(()).ok();
                }
            }
        }
    }
}
