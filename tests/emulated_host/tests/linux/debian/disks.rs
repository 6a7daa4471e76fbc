//! Every kind of request to a disk, made by Linux.

use std::time::Duration;

use super::{
    image::{SHELL, wanted},
    session::{self, COMMAND_DEADLINE, Session},
};
use crate::hosts::Progress;

/// What fio writes and verifies: pattern, sizes, and what makes it another kind of load.
const FIO: [(&str, &str, &str); 4] = [
    ("randwrite", "4k-4k", "--iodepth=16"),
    ("randrw", "4k-64k", "--iodepth=8 --fsync=16"),
    ("write", "1M-1M", "--iodepth=4"),
    // A discarded block reads as zeroes on a file: fio verifies what is written after it.
    ("trimwrite", "64k-64k", "--iodepth=4"),
];
/// Bytes of the disk that each of two jobs writes, on a processor and so on a queue of its own.
const SIZE: &str = "12M";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_mkfs_and_fsck_find_every_byte_through_every_kind_of_request() -> anyhow::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let progress = Progress::begin();
    let host = session::host(&progress)?;
    host.shell("truncate -s 256M /disk/data.raw", Duration::from_secs(60))?;
    let mut guest = session::guest(&[("/disk/data.raw", false)], SHELL);
    guest.queues = 2;
    let mut debian = Session::boot(&host, &guest).await?;
    debian.at_shell().await?;
    progress.say("a shell is there");
    let disk = "/dev/vdb";
    let queue = |name: &str| format!("cat /sys/block/vdb/queue/{name}");
    assert_eq!(debian.run("ls /sys/block/vdb/mq | wc -l").await?, "2");
    assert_eq!(debian.run(&queue("write_cache")).await?, "write back");
    assert_ne!(debian.run(&queue("discard_max_bytes")).await?, "0");
    assert_ne!(debian.run(&queue("write_zeroes_max_bytes")).await?, "0");
    for (pattern, sizes, options) in FIO {
        debian
            .run(&format!(
                "fio --name=v --filename={disk} --numjobs=2 --cpus_allowed=0-1 --cpus_allowed_policy=split \
                 --offset_increment={SIZE} --size={SIZE} --rw={pattern} --bsrange={sizes} {options} --direct=1 \
                 --ioengine=libaio --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal >/tmp/fio"
            ))
            .await?;
        progress.say(&format!("fio: {pattern} {sizes} {options}"));
    }
    // Both queues were used: their interrupts say so.
    let used = debian.run("grep virtio1-req /proc/interrupts | awk '$2+$3 > 0' | wc -l").await?;
    assert_eq!(used, "2", "requests went through {used} queues");

    for way in ["", "--zeroout"] {
        debian.run(&format!("dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct")).await?;
        debian.run(&format!("blkdiscard {way} --length 8M {disk}")).await?;
        debian.run(&format!("cmp -n 8388608 {disk} /dev/zero")).await?;
    }
    progress.say("what was discarded or zeroed reads as zeroes");
    debian
        .run(&format!("echo 'write through' > /sys/block/vdb/queue/write_cache; {}", queue("write_cache")))
        .await?;
    debian.run(&format!("mkfs.ext4 -q {disk} && mkdir -p /data && mount {disk} /data")).await?;
    debian.run("cp -r /usr/sbin /data/ && sync && fstrim /data").await?;
    debian.run("echo 3 > /proc/sys/vm/drop_caches; diff -r /usr/sbin /data/sbin && umount /data").await?;
    debian.run(&format!("fsck.ext4 -f -n {disk}")).await?;
    progress.say("mkfs and fsck");

    host.shell("truncate -s 64M /disk/more.raw", Duration::from_secs(60))?;
    debian.vmmd.attach_disk("/disk/more.raw", 3).await?;
    debian
        .run("until [ -b /dev/vdc ]; do sleep 0.2; done; mkfs.ext4 -q /dev/vdc && mount /dev/vdc /data")
        .await?;
    debian.run("cp /usr/sbin/mke2fs /data/ && umount /data && mount /dev/vdc /data").await?;
    debian.run("cmp /usr/sbin/mke2fs /data/mke2fs && umount /data").await?;
    debian.vmmd.detach_disk(3, COMMAND_DEADLINE).await?;
    debian.run("[ ! -e /sys/block/vdc ]").await?;
    progress.say("a disk came, was written, and went");
    debian.power_off_by_button().await?;
    progress.say("the power button ended the VM");
    Ok(())
}
