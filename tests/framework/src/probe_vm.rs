//! VMs that run the probe: what tests and the demo put on a cluster.

use std::time::Duration;

use anyhow::Context as _;
use drover_client::{
    Client, Import, Waited,
    api::{CreateVolumeRequest, Operation, Vm, VmPhase, VmSpec, Volume},
};
use drover_probe_record::{BLOCK_BYTES, Workload};
use drover_test_prerequisites::probe_image;
use drover_units::Bytes;
use tokio::fs::File;

use crate::{
    cluster::TestCluster,
    ledger::{self, Subject},
    wait::{eventually, eventually_async},
};

/// Name under which [`import_probe`] registers the probe.
pub const IMAGE: &str = "probe";
/// For any single step, on a slow machine.
pub const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// Memory of a VM that does not dirty any: the probe, its tables and room to spare.
const MEMORY_DEFAULT: Bytes = Bytes::mib(64);
/// Memory that the probe needs besides the region it dirties.
const MEMORY_BESIDES_DIRTY: u64 = 128;

/// A VM that runs the probe, with a volume of its own.
#[derive(Clone, Debug)]
pub struct ProbeVm {
    /// What the ledger needs to judge it.
    pub subject: Subject,
    /// As it was when it had booted.
    pub vm: Vm,
    /// What its placement took.
    pub placement_us: u64,
}

/// What to launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name of the VM; its volume is called `<name>-disk`.
    pub name: String,
    /// Its work; `disk` must be set.
    pub workload: Workload,
    /// Anti-affinity group, may be empty.
    pub group: String,
    /// Virtual CPUs.
    pub vcpus: u32,
}

impl ProbeVm {
    /// Its name.
    pub fn name(&self) -> &str {
        self.vm.spec.as_ref().map_or(&self.vm.id, |spec| &spec.name)
    }

    /// Creates a volume and a VM, and waits for the guest's first byte.
    ///
    /// # Errors
    /// If something is refused, fails or takes longer than [`STEP_DEADLINE`].
    pub async fn launch(cluster: &TestCluster, client: &Client, launch: Launch) -> anyhow::Result<Self> {
        let disk = launch.workload.disk.context("a probe VM needs work on its disk")?;
        let size = Bytes::new(disk.slots * BLOCK_BYTES as u64);
        let volume = create_volume(cluster, client, &format!("{}-disk", launch.name), size).await?;
        let memory = launch
            .workload
            .dirty
            .map_or(MEMORY_DEFAULT, |dirty| Bytes::mib(dirty.mib + MEMORY_BESIDES_DIRTY));
        let spec = VmSpec {
            name: launch.name.clone(),
            vcpus: launch.vcpus,
            memory_bytes: memory.get(),
            image: IMAGE.to_owned(),
            cmdline: launch.workload.to_string(),
            volumes: vec![volume.name],
            anti_affinity_group: launch.group,
            ..VmSpec::default()
        };
        let operation = client.create_vm(spec).await?;
        let operation = finish(client, operation).await?;
        let vm = eventually_async("the guest's first byte", STEP_DEADLINE, || async {
            let vm = client.get_vm(&launch.name).await?;
            let booted = vm.boot.is_some_and(|boot| boot.spawn_to_first_byte_us > 0);
            Ok((booted && vm.phase() == VmPhase::Running).then_some(vm))
        })
        .await?;
        let subject = Subject { vm_id: vm.id.clone(), volume_id: volume.id, workload: launch.workload };
        Ok(Self { subject, vm, placement_us: operation.placement_us })
    }

    /// Waits until the guest has been told that its first `acked` writes are durable.
    ///
    /// # Errors
    /// If that takes longer than [`STEP_DEADLINE`].
    pub fn wait_for_writes(&self, cluster: &TestCluster, acked: u64) -> anyhow::Result<()> {
        let what = format!("{acked} acknowledged writes of {}", self.name());
        eventually(&what, STEP_DEADLINE, || {
            Ok((ledger::console(cluster, &self.subject.vm_id)?.acked_max() >= acked).then_some(()))
        })
    }

    /// Waits until the guest has `more` acknowledged writes than now.
    ///
    /// # Errors
    /// If that takes longer than [`STEP_DEADLINE`].
    pub fn wait_for_more_writes(&self, cluster: &TestCluster, more: u64) -> anyhow::Result<()> {
        let now = ledger::console(cluster, &self.subject.vm_id)?.acked_max();
        self.wait_for_writes(cluster, now + more)
    }
}

/// Imports the probe as the boot image [`IMAGE`].
///
/// # Errors
/// If the control plane refuses it.
pub async fn import_probe(client: &Client) -> anyhow::Result<()> {
    let path = probe_image();
    let file = File::open(&path).await.with_context(|| format!("cannot open {}", path.display()))?;
    let size = Bytes::new(file.metadata().await?.len());
    let import = Import { name: IMAGE.to_owned(), pool: String::new(), size };
    client.import_image(import, file, |_| {}).await.context("the probe is not a boot image")?;
    Ok(())
}

/// Creates an empty volume in the cluster's pool.
///
/// # Errors
/// If the control plane refuses it.
pub async fn create_volume(
    cluster: &TestCluster,
    client: &Client,
    name: &str,
    size: Bytes,
) -> anyhow::Result<Volume> {
    let request = CreateVolumeRequest {
        name: name.to_owned(),
        pool: cluster.volume_pool().to_owned(),
        size_bytes: size.get(),
        ..CreateVolumeRequest::default()
    };
    Ok(client.create_volume(request).await?)
}

/// Waits for an operation to be done.
///
/// # Errors
/// If it fails, is cancelled, or takes longer than [`STEP_DEADLINE`].
pub async fn finish(client: &Client, operation: Operation) -> anyhow::Result<Operation> {
    Ok(client.wait_operation(&operation.id, Waited::at_most(STEP_DEADLINE), |_| {}).await?)
}
