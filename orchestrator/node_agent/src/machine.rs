//! From what the control plane asks for to what vmmd builds: names become paths.

use std::io;

use drover_ids::{NodeId, VmId, VolumeId};
use drover_wire::{
    node::v1::{RbdAccess, SeedDisk, VmSpec, VolumeAttachment, pool_access},
    vm::v1::{Disk, RbdImage, VmConfig},
};
use tonic::Status;

use crate::{
    capabilities::Librbd,
    config::Pool,
    host_facts::Network,
    nics::{self, Wiring},
    state_dir::RunDir,
};

/// Limits of one message, so that a peer cannot make the agent do unbounded work.
const VOLUMES_MAX: usize = 64;
/// The control plane's limits on what goes into a seed disk keep it below this.
const SEED_BYTES_MAX: usize = 1 << 20;

/// A VM that this node could run.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) config: VmConfig,
    /// A disk that the control plane has made; it is written before vmmd starts.
    pub(crate) seed: Option<SeedDisk>,
    /// Where that is among disks; 0: behind the volumes.
    seed_place: u32,
    /// Whether it goes on with what was suspended here.
    pub(crate) resume: bool,
    /// What becomes of the taps of its network interfaces once they are there.
    pub(crate) wiring: Vec<Wiring>,
}

/// What this node has for VMs.
#[derive(Clone, Debug)]
pub(crate) struct Offers {
    pub(crate) pools: Vec<Pool>,
    pub(crate) librbd: Librbd,
    pub(crate) networks: Vec<Network>,
}

impl Machine {
    /// Checks a specification and resolves its paths. Whether the files exist is vmmd's to find out.
    pub(crate) fn resolve(spec: Option<VmSpec>, node: NodeId, offers: &Offers) -> Result<Self, Status> {
        let Offers { pools, networks, .. } = offers;
        let invalid = |what: String| Status::invalid_argument(what);
        let spec = spec.ok_or_else(|| invalid("spec is missing".into()))?;
        let vm: VmId = spec.vm_id.parse().map_err(|error| invalid(format!("spec.vm_id: {error}")))?;
        if spec.vcpus == 0 {
            return Err(invalid("spec.vcpus must be at least 1".into()));
        }
        if spec.memory_bytes == 0 {
            return Err(invalid("spec.memory_bytes must be more than 0".into()));
        }
        if spec.volumes.len() > VOLUMES_MAX {
            return Err(invalid(format!("spec.volumes has more than {VOLUMES_MAX} entries")));
        }
        let named = |volume: &VolumeAttachment| pools.iter().find(|pool| pool.name == volume.pool);
        let boot_pool = match (spec.image_pool.as_str(), spec.volumes.first()) {
            // A boot image is in a pool of this node's configuration, wherever the volumes are.
            ("", Some(volume)) if named(volume).is_some() => pool(&volume.pool, pools)?,
            (named, _) if !named.is_empty() => pool(named, pools)?,
            _ => pools.first().ok_or_else(|| Status::failed_precondition("this node has no pool"))?,
        };
        let kernel =
            boot_pool.dir.image_path(&spec.image).map_err(|error| invalid(format!("spec.image: {error}")))?;
        if !kernel.is_file() {
            return Err(Status::failed_precondition(format!(
                "spec.image: there is no image '{}' in pool '{}'",
                spec.image, boot_pool.name
            )));
        }
        let initrd_path = match spec.initrd.as_str() {
            "" => String::new(),
            name => {
                let path = boot_pool
                    .dir
                    .image_path(name)
                    .map_err(|error| invalid(format!("spec.initrd: {error}")))?;
                utf8(&path)?
            }
        };
        let (nics, wiring) = nics::resolve((node, vm), spec.nics, networks)?;
        let disks = spec.volumes.iter().map(|volume| disk("spec.volumes", volume, offers));
        let disks: Vec<Disk> = disks.collect::<Result<_, _>>()?;
        let config = VmConfig {
            vm_id: vm.to_string(),
            name: spec.name,
            vcpus: spec.vcpus,
            memory_bytes: spec.memory_bytes,
            kernel_path: utf8(&kernel)?,
            cmdline: spec.cmdline,
            disks,
            node_id: node.to_string(),
            stall: spec.stall,
            initrd_path,
            platform: spec.platform,
            nics,
            devices: spec.devices,
        };
        if spec.seed.as_ref().is_some_and(|seed| seed.image.len() > SEED_BYTES_MAX) {
            return Err(invalid(format!("spec.seed has more than {SEED_BYTES_MAX} bytes")));
        }
        Ok(Self { config, seed: spec.seed, seed_place: spec.seed_place, resume: false, wiring })
    }

    /// Says where processes of this host reach the guest's sockets, if it has any.
    pub(crate) fn place_vsock(&mut self, dir: &RunDir) -> io::Result<()> {
        if let Some(vsock) = self.config.devices.as_mut().and_then(|devices| devices.vsock.as_mut()) {
            let path = dir.vsock().into_os_string().into_string();
            vsock.socket_path = path.map_err(|_| io::Error::other("the path is not UTF-8"))?;
        }
        Ok(())
    }

    /// Puts the seed disk into the VM's directory and behind its volumes.
    pub(crate) fn place_seed(&mut self, dir: &RunDir) -> io::Result<()> {
        let Some(seed) = self.seed.take() else { return dir.remove_seed() };
        let path = dir.write_seed(&seed.image)?;
        let path =
            path.into_os_string().into_string().map_err(|_| io::Error::other("the path is not UTF-8"))?;
        // Volumes have ids of their own, and this disk is the VM's: no volume can have the VM's id.
        let volume_id = self.config.vm_id.clone();
        let place = self.seed_place;
        self.config.disks.push(Disk { volume_id, path, read_only: true, place, ..Disk::default() });
        Ok(())
    }
}

/// A volume as a disk: its way from this node.
pub(crate) fn disk(field: &str, volume: &VolumeAttachment, offers: &Offers) -> Result<Disk, Status> {
    let id: VolumeId = volume
        .volume_id
        .parse()
        .map_err(|error| Status::invalid_argument(format!("{field}.volume_id: {error}")))?;
    let mut disk = Disk {
        volume_id: id.to_string(),
        read_only: volume.read_only,
        limits: volume.limits,
        queues: volume.queues,
        place: volume.place,
        ..Disk::default()
    };
    match volume.access.clone().and_then(|access| access.kind) {
        Some(pool_access::Kind::Rbd(RbdAccess { cluster, image })) => {
            if !offers.librbd.is_there() {
                return Err(Status::failed_precondition(format!(
                    "volume {id} is in the rbd pool '{}', and this node has no librbd: install the package librbd1 and \
                     restart the agent",
                    volume.pool
                )));
            }
            disk.rbd = Some(RbdImage { access: cluster, image });
        }
        Some(pool_access::Kind::Dir(_)) | None => {
            disk.path = utf8(&pool(&volume.pool, &offers.pools)?.dir.volume_path(id))?;
        }
    }
    Ok(disk)
}

fn pool<'a>(name: &str, pools: &'a [Pool]) -> Result<&'a Pool, Status> {
    pools.iter().find(|pool| pool.name == name).ok_or_else(|| {
        let known: Vec<_> = pools.iter().map(|pool| pool.name.as_str()).collect();
        let shown: String = name.chars().take(64).collect();
        Status::failed_precondition(format!("this node has no pool '{shown}': it has {}", known.join(", ")))
    })
}

fn utf8(path: &std::path::Path) -> Result<String, Status> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Status::failed_precondition(format!("the path {} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use drover_dir_volume::DirPool;
    use drover_wire::node::v1::{Nic, PoolAccess};

    use super::*;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn spec() -> VmSpec {
        VmSpec {
            vm_id: ID.into(),
            name: "web".into(),
            vcpus: 2,
            memory_bytes: 64 << 20,
            image: "probe".into(),
            cmdline: "probe.heartbeat=5".into(),
            image_pool: String::new(),
            volumes: vec![VolumeAttachment {
                volume_id: ID.into(),
                pool: "fast".into(),
                read_only: true,
                access: None,
                limits: None,
                queues: 0,
                place: 0,
            }],
            seed: None,
            ..VmSpec::default()
        }
    }

    fn check(change: impl FnOnce(&mut VmSpec), names: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = DirPool::open(folder.path()).expect("a pool");
        std::fs::write(dir.image_path("probe").expect("a name"), b"elf").expect("an image");
        let pools = ["slow", "fast"].map(|name| Pool { name: name.into(), dir: dir.clone() }).to_vec();
        let offers = Offers { pools, librbd: Librbd::default(), networks: Vec::new() };
        let mut spec = spec();
        change(&mut spec);
        match Machine::resolve(Some(spec), NodeId::from_u128(1), &offers) {
            Ok(machine) => assert!(machine.config.disks[0].path.contains(names), "{machine:?}"),
            Err(status) => assert!(status.message().contains(names), "{status}"),
        }
    }

    #[test]
    fn a_seed_is_a_disk_behind_the_volumes_that_nobody_else_may_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let dir = DirPool::open(folder.path()).expect("a pool");
        std::fs::write(dir.image_path("probe").expect("a name"), b"elf").expect("an image");
        let pools = vec![Pool { name: "fast".into(), dir }];
        let offers = Offers { pools, librbd: Librbd::default(), networks: Vec::new() };
        let state =
            crate::state_dir::StateDir::open(&folder.path().join("state")).expect("a state directory");
        let run_dir = state.run_dir(ID.parse().expect("an id"));
        std::fs::create_dir_all(run_dir.path()).expect("a folder");
        let place = |seed: Option<&[u8]>| {
            let seed = seed.map(|image| SeedDisk { image: image.to_vec() });
            let spec = VmSpec { seed, ..spec() };
            let resolved = Machine::resolve(Some(spec), NodeId::from_u128(1), &offers);
            let mut machine = resolved.expect("valid");
            machine.place_seed(&run_dir).expect("placed");
            machine.config.disks
        };
        for seed in [b"first", b"other"] {
            let disks = place(Some(seed));
            let [_, disk] = &disks[..] else { panic!("{disks:?}") };
            assert!(disk.read_only && disk.volume_id == ID, "{disk:?}");
            assert_eq!(std::fs::read(&disk.path).expect("there"), seed);
            let mode = std::fs::metadata(&disk.path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let disks = place(None);
        assert_eq!(disks.len(), 1);
        assert!(!run_dir.path().join("seed.iso").exists(), "an old seed is gone");
        check(|spec| spec.seed = Some(SeedDisk { image: vec![0; SEED_BYTES_MAX + 1] }), "spec.seed");
    }

    #[test]
    fn names_become_paths_and_errors_name_the_field() {
        check(|_| {}, &format!("/volumes/{ID}.raw"));
        check(|spec| spec.vcpus = 0, "spec.vcpus");
        check(|spec| spec.memory_bytes = 0, "spec.memory_bytes");
        check(|spec| spec.vm_id = "x".into(), "spec.vm_id");
        check(|spec| spec.image = "../etc".into(), "spec.image");
        check(|spec| spec.image = "absent".into(), "no image 'absent' in pool 'fast'");
        check(|spec| spec.volumes[0].pool = "gone".into(), "it has slow, fast");
        check(|spec| spec.image_pool = "gone".into(), "no pool 'gone'");
        check(|spec| spec.volumes[0].volume_id = "x".into(), "spec.volumes.volume_id");
        check(|spec| spec.volumes = vec![spec.volumes[0].clone(); 65], "spec.volumes");
        check(|spec| spec.nics = vec![Nic::default()], "this node has no bridge");
        let rbd = RbdAccess { cluster: None, image: "volume-1".into() };
        let access = PoolAccess { kind: Some(pool_access::Kind::Rbd(rbd)) };
        check(|spec| spec.volumes[0].access = Some(access), "install the package librbd1");
    }
}
