//! A guest ends, or starts anew, as it wishes or is asked.

use super::{
    image::{SHELL, wanted},
    session::{self, Session},
};
use crate::hosts::Progress;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reboot_starts_debian_anew_and_poweroff_ends_it() -> anyhow::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let progress = Progress::begin();
    let host = session::host(&progress)?;
    let mut debian = Session::boot(&host, &session::guest(&[], SHELL)).await?;
    debian.at_shell().await?;
    progress.say("a shell is there");
    debian.run("echo kept > /root/kept").await?;
    debian.vmmd.type_text("reboot\n").await?;
    debian.at_shell().await?;
    progress.say("reboot started it anew");
    assert_eq!(debian.run("cat /root/kept").await?, "kept");
    assert_eq!(debian.run("nproc").await?, "2");
    debian.vmmd.type_text("poweroff\n").await?;
    debian.switched_off().await?;
    progress.say("poweroff ended the VM");
    Ok(())
}
