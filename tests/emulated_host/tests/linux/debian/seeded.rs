//! cloud-init does what the seed disk says.

use drover_cloud_init::{Seed, Unchecked};
use drover_test_emulated_host::{ext4, guest::Nonce};
use drover_wire::vm::v1 as wire;

use super::{
    image::wanted,
    session::{self, Session},
};
use crate::hosts::Progress;

const MAC: &str = "52:54:00:00:07:03";
const HOSTNAME: &str = "web-1";
const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGRyb3ZlcidzIHRlc3Q= ann@desk";

fn seed(nonce: &Nonce, password: &Nonce) -> anyhow::Result<Vec<u8>> {
    // One key of the guest's own, of the kind that takes no time to make.
    let user_data = format!(
        "#cloud-config\nssh_genkeytypes: [ed25519]\n\
         chpasswd: {{ expire: false, users: [{{ name: root, password: '{}', type: text }}] }}\n\
         write_files:\n  - {{ path: /root/told, content: '{}' }}\n",
        password.as_str(),
        nonce.as_str()
    );
    let raw = Unchecked {
        hostname: HOSTNAME.to_owned(),
        ssh_keys: vec![SSH_KEY.to_owned()],
        user_data,
        network_config: session::NETWORK.to_owned(),
    };
    Ok(Seed::try_from(raw)?.image("i-0001", "unnamed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_boots_to_a_login_and_is_what_its_seed_disk_says() -> anyhow::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let progress = Progress::begin();
    let host = session::host(&progress)?;
    let (nonce, password) = (Nonce::random(), Nonce::random());
    host.put("/disk/seed.iso", 0o600, &seed(&nonce, &password)?)?;
    let mut guest = session::guest(&[("/disk/seed.iso", true)], "");
    guest.nics = vec![wire::Nic { mac: MAC.into(), tap: "t0".into(), ..wire::Nic::default() }];
    let mut debian = Session::boot(&host, &guest).await?;
    debian.log_in(HOSTNAME, &password).await?;
    progress.say("logged in");
    debian.run("cloud-init status --wait >/dev/null; cloud-init status | grep -q done").await?;
    progress.say("cloud-init is done");
    assert_eq!(debian.run("cat /root/told").await?, nonce.as_str());
    assert_eq!(debian.run("hostname").await?, HOSTNAME);
    debian.run("grep -q 'DataSourceNoCloud.*seed=/dev/vdb' /run/cloud-init/result.json").await?;
    assert!(debian.run("cat /home/debian/.ssh/authorized_keys").await?.contains(SSH_KEY));
    debian.run("until ip address show ens31 | grep -q 192.168.7.2/24; do sleep 1; done").await?;
    assert_eq!(debian.run("nproc").await?, "2");
    assert_eq!(debian.run("findmnt -no SOURCE /").await?, "/dev/vda");
    debian
        .run("lspci -n 2>/dev/null | grep -q 1af4: || grep -q 0x1af4 /sys/bus/pci/devices/*/vendor")
        .await?;
    debian.run("tr a-f A-F < /root/told > /root/answer").await?;
    progress.say("it is what the seed says");
    debian.vmmd.type_text("poweroff\n").await?;
    debian.switched_off().await?;
    progress.say("poweroff ended the VM");

    let image = host.power_off()?;
    let folder = tempfile::tempdir_in(drover_test_prerequisites::workspace_root().join("target"))?;
    let root = folder.path().join("root.raw");
    ext4::dump(&image, "/root.raw", &root)?;
    ext4::check(&root)?;
    let answer = String::from_utf8(ext4::read(&root, "/root/answer")?)?;
    assert_eq!(answer.trim(), nonce.as_str().to_uppercase());
    progress.say("its answer is on the disk");
    Ok(())
}
