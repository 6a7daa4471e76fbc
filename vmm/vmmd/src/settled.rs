//! What is done once the VM runs and its start is over.

use std::time::Duration;

use drover_wire::vm::v1 as wire;
use tokio::{sync::watch, time::sleep};
use tracing::debug;

/// From the VM's start until its guest has found its devices: what that takes of this process's code is needed no more.
const START_UP: Duration = Duration::from_millis(300);

/// Gives memory back that only the start needed, once the VM runs.
pub(crate) async fn tidy_up(mut info: watch::Receiver<wire::VmInfo>) {
    if info.wait_for(|info| info.state() == wire::VmState::Running).await.is_err() {
        return;
    }
    sleep(START_UP).await;
    drover_jail::give_back_heap();
    // It costs memory only.
    for (what, given_back) in
        [("stack", drover_jail::give_back_stack()), ("code", drover_jail::forget_start_up())]
    {
        if let Err(error) = given_back {
            debug!(what, %error, "what the start needed stays in memory");
        }
    }
}
