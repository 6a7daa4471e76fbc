//! A process that dies takes nobody with it.

use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;

use crate::support::{Host, config, heartbeat};

#[tokio::test]
async fn kill_9_of_one_leaves_the_other_alone() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let (mut victim, mut neighbour) = (host.spawn("victim").await, host.spawn("neighbour").await);
    victim.boot(config(heartbeat())).await;
    neighbour.boot(config(heartbeat())).await;
    victim.beats(3).await;
    neighbour.beats(3).await;
    let before = neighbour.info().await;
    victim.kill_9();
    neighbour.beats(20).await;
    let after = neighbour.info().await;
    assert_eq!(after, before, "nothing of it has changed");
    assert_eq!(after.state(), wire::VmState::Running);
    assert_eq!((neighbour.console().bad(), neighbour.console().lives[0].error_lines), (0, 0));
}
