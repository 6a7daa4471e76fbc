//! Watches from outside that no VM runs twice.
//!
//! Two vmmds are asked one after the other, so a VM that moves between the two questions could look as if it ran twice. The
//! observer therefore asks everyone twice: a VM runs twice only if one vmmd says `RUNNING` with the same revision before and
//! after another one said `RUNNING` for the same VM.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use drover_wire::vm::v1::{InfoRequest, VmInfo, VmState, vm_client::VmClient};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::process::VmmdProcess;

/// Pause between two rounds of questions: often enough to see a double run of a tenth of a second.
const INTERVAL: Duration = Duration::from_millis(50);
/// A vmmd that does not answer in this time (it was just killed) is not counted as running.
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);

/// A running watch over every vmmd below a folder.
#[derive(Debug)]
pub struct OwnershipObserver {
    stop: Arc<AtomicBool>,
    seen: Arc<Observations>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Observations {
    rounds: AtomicU64,
    double_owners: AtomicU64,
}

impl OwnershipObserver {
    /// Starts watching every vmmd whose run directory lies below `folder`.
    ///
    /// # Errors
    /// If no thread or runtime can be made.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime for the observer")?;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Observations::default()));
        let thread = thread::Builder::new()
            .name("ownership-observer".to_owned())
            .spawn({
                let (stop, seen, folder) = (Arc::clone(&stop), Arc::clone(&seen), folder.to_owned());
                move || runtime.block_on(watch(&folder, &stop, &seen))
            })
            .context("cannot start the observer's thread")?;
        Ok(Self { stop, seen, thread: Some(thread) })
    }

    /// How often everyone has been asked.
    pub fn rounds(&self) -> u64 {
        self.seen.rounds.load(Ordering::Relaxed)
    }

    /// How often a VM was seen running twice at one time.
    pub fn double_owners(&self) -> u64 {
        self.seen.double_owners.load(Ordering::Relaxed)
    }
}

impl Drop for OwnershipObserver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn watch(folder: &Path, stop: &AtomicBool, seen: &Observations) {
    let mut clients = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let running: Vec<PathBuf> = VmmdProcess::below(folder).into_iter().map(|vmmd| vmmd.run_dir).collect();
        clients.retain(|run_dir, _| running.contains(run_dir));
        for run_dir in running {
            let client = client(run_dir.join("vmmd.sock"));
            clients.entry(run_dir).or_insert(client);
        }
        let first = ask_everyone(&mut clients).await;
        let second = ask_everyone(&mut clients).await;
        seen.double_owners.fetch_add(count_double_owners(&first, &second), Ordering::Relaxed);
        seen.rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// One answer: who said so (by its place in the order of asking), which VM it runs, at which revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    order: usize,
    vm: String,
    revision: u64,
}

async fn ask_everyone(clients: &mut BTreeMap<PathBuf, VmClient<Channel>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (order, client) in clients.values_mut().enumerate() {
        let Ok(Ok(info)) = timeout(ANSWER_DEADLINE, client.info(InfoRequest {})).await else { continue };
        let VmInfo { vm_id, state, revision, .. } = info.into_inner();
        if matches!(VmState::try_from(state), Ok(VmState::Running | VmState::MigratingOut)) {
            answers.push(Answer { order, vm: vm_id, revision });
        }
    }
    answers
}

/// Pairs (steady, other): `steady` gave the same answer in both rounds, and `other` answered between those two moments: in the
/// first round if it is asked after `steady`, in the second if before.
fn count_double_owners(first: &[Answer], second: &[Answer]) -> u64 {
    let steady = first.iter().filter(|answer| second.contains(answer));
    let pairs = steady.flat_map(|steady| {
        let later = first.iter().filter(|other| other.order > steady.order);
        let earlier = second.iter().filter(|other| other.order < steady.order);
        later.chain(earlier).filter(|other| other.vm == steady.vm)
    });
    pairs.count() as u64
}

fn client(socket: PathBuf) -> VmClient<Channel> {
    let channel = Endpoint::from_static("http://vmmd.invalid").connect_with_connector_lazy(service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ));
    VmClient::new(channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(order: usize, vm: &str, revision: u64) -> Answer {
        Answer { order, vm: vm.to_owned(), revision }
    }

    fn check(first: &[Answer], second: &[Answer], expect: bool) {
        assert_eq!(count_double_owners(first, second) > 0, expect, "{first:?} then {second:?}");
    }

    #[test]
    fn two_that_run_throughout_are_a_double_owner() {
        let both = [running(0, "a", 3), running(1, "a", 7)];
        check(&both, &both, true);
    }

    #[test]
    fn one_that_moves_between_the_questions_is_not() {
        check(&[running(0, "a", 3), running(1, "a", 7)], &[running(1, "a", 7)], false);
        check(&[running(1, "a", 7)], &[running(0, "a", 3), running(1, "a", 7)], true);
        check(&[running(0, "a", 3)], &[running(1, "a", 7)], false);
    }

    #[test]
    fn different_vms_do_not_count() {
        let both = [running(0, "a", 3), running(1, "b", 7)];
        check(&both, &both, false);
    }
}
