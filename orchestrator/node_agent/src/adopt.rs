//! What an agent that starts finds of its predecessor's VMs.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use drover_wire::vm::v1::VmInfo;
use tokio::{task::JoinSet, time::timeout};
use tracing::{error, warn};

use crate::{
    death_watch::DeathWatch,
    process::{self, Process},
    state_dir::{Record, RunDir, StateDir},
    vmmd::Vmmd,
};

/// A vmmd answers within milliseconds. One that does not is waited for beside everything else.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A vmmd that was being forked while its agent died shows its command line within this.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A VM with a record, or with a process that has none.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) dir: RunDir,
    pub(crate) record: Record,
    pub(crate) process: Option<Running>,
}

/// A process that is there, and what it says if it answers.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Arc<Process>,
    pub(crate) answer: Option<(Vmmd, VmInfo)>,
}

/// Looks at every VM directory; all processes are asked at the same time.
pub(crate) async fn scan(state_dir: &StateDir, deaths: &DeathWatch) -> anyhow::Result<Vec<Adopted>> {
    let dirs = state_dir.run_dirs().context("--state-dir: cannot list the VMs")?;
    let mut looks = JoinSet::new();
    for (index, dir) in dirs.into_iter().enumerate() {
        let deaths = deaths.clone();
        looks.spawn(async move { (index, look(dir, &deaths).await) });
    }
    let mut found = Vec::new();
    while let Some(looked) = looks.join_next().await {
        let (index, adopted) = looked.context("a look at a VM did not end")?;
        if let Some(adopted) = adopted? {
            found.push((index, adopted));
        }
    }
    // The order in which they were retired is the order in which they are forgotten.
    found.sort_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, adopted)| adopted).collect())
}

async fn look(dir: RunDir, deaths: &DeathWatch) -> anyhow::Result<Option<Adopted>> {
    let vm = dir.vm();
    let process = find_process(&dir, deaths).await?;
    let record = match dir.read_record() {
        Ok(Some(record)) => record,
        // Nothing was ever started here.
        Ok(None) if process.is_none() => return Ok(None),
        Ok(None) => unknown_record(),
        Err(error) => {
            error!(%vm, %error, "the record of a VM cannot be read; only what runs is known");
            unknown_record()
        }
    };
    let process = match process {
        None => None,
        Some(process) => {
            let answer = timeout(ANSWER_WITHIN, ask(&dir)).await.ok().flatten();
            if answer.is_none() {
                warn!(%vm, pid = process.pid(), "an adopted vmmd does not answer yet");
            }
            Some(Running { process, answer })
        }
    };
    Ok(Some(Adopted { dir, record, process }))
}

const fn unknown_record() -> Record {
    Record { name: String::new(), epoch: 0, retired: false }
}

/// A vmmd's first words to a new agent.
pub(crate) async fn ask(dir: &RunDir) -> Option<(Vmmd, VmInfo)> {
    let vmmd = Vmmd::connect(dir.socket()).await.ok()?;
    let info = vmmd.info().await.ok()?;
    Some((vmmd, info))
}

async fn find_process(dir: &RunDir, deaths: &DeathWatch) -> anyhow::Result<Option<Arc<Process>>> {
    let looks = async {
        loop {
            let mut found = process::find(dir.path()).context("cannot read /proc")?;
            if let Some(first) = found.pop() {
                for other in found {
                    error!(vm = %dir.vm(), "a second process of a VM is killed");
                    other.kill();
                }
                return Ok(Some(Arc::new(
                    first.adopt(dir.clone(), deaths).context("cannot watch a process")?,
                )));
            }
            if dir.is_free().context("cannot check the lock of vmmd.log")? {
                return anyhow::Ok(None);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    let looked = timeout(VISIBLE_WITHIN, looks).await;
    ensure!(
        looked.is_ok(),
        "a process that cannot be seen holds {}: is the agent in another PID namespace than before?",
        dir.path().join("vmmd.log").display()
    );
    looked.context("unreachable: checked above")?
}
