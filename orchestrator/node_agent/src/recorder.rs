//! One thread writes the VMs' records, so that they reach the disk in the order of the decisions they record, and the
//! agent's task never waits for a disk.

use std::{io, thread};

use anyhow::Context as _;
use drover_ids::OwnerEpoch;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::state_dir::{Record, RunDir};

/// Records that wait for the disk before the agent does.
const DEPTH: usize = 1024;

enum Job {
    Write { dir: RunDir, record: Record, done: oneshot::Sender<io::Result<()>> },
    Retire { dir: RunDir, epoch: OwnerEpoch },
    Discard { dir: RunDir },
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    jobs: mpsc::Sender<Job>,
}

impl Recorder {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (jobs, mut queue) = mpsc::channel(DEPTH);
        thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    perform(job);
                }
            })
            .context("cannot start the recorder's thread")?;
        Ok(Self { jobs })
    }

    /// Queues a record; the future is done when it is durable. The queueing happens at the call, not at the await.
    pub(crate) fn write(&self, dir: RunDir, record: Record) -> impl Future<Output = io::Result<()>> + use<> {
        let (done, answer) = oneshot::channel();
        let queued = self.jobs.try_send(Job::Write { dir, record, done }).is_ok();
        async move {
            if !queued {
                return Err(io::Error::other("too many records wait for the disk"));
            }
            answer.await.unwrap_or_else(|_| Err(io::Error::other("the recorder has ended")))
        }
    }

    /// Notes that the VM's end has been acknowledged. If that is lost, the end is reported once more.
    pub(crate) fn retire(&self, dir: RunDir, epoch: OwnerEpoch) {
        self.queue(Job::Retire { dir, epoch });
    }

    /// Deletes what is left of a VM.
    pub(crate) fn discard(&self, dir: RunDir) {
        self.queue(Job::Discard { dir });
    }

    fn queue(&self, job: Job) {
        if self.jobs.try_send(job).is_err() {
            error!("the disk of the state directory does not keep up: a record was dropped");
        }
    }
}

fn perform(job: Job) {
    match job {
        Job::Write { dir, record, done } => {
            // The launch that waits for this may have been given up.
            done.send(dir.write_record(&record)).ok();
        }
        Job::Retire { dir, epoch } => {
            let retired = dir.read_record().and_then(|record| match record {
                Some(record) => dir.write_record(&Record {
                    epoch: epoch.get().max(record.epoch),
                    retired: true,
                    ..record
                }),
                None => Ok(()),
            });
            if let Err(error) = retired {
                error!(vm = %dir.vm(), %error, "cannot record that a VM has ended");
            }
        }
        Job::Discard { dir } => {
            if let Err(error) = dir.discard() {
                error!(vm = %dir.vm(), %error, "cannot delete what is left of a VM");
            }
        }
    }
}
