//! [`CephCluster`]: what is done with a cluster that runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    command::{COMMAND_DEADLINE, run},
    daemon::{Daemon, Daemons, Running},
    directory::{self, Directory},
    error::CephError,
    leaks::LeakReport,
    options::{CephOptions, PoolOptions},
    start,
};

/// A running cluster. Dropping it takes every daemon down and removes its directory.
///
/// Methods take `&self` and may be called from several threads: a test that kills an OSD does so beside its load.
#[derive(Debug)]
pub struct CephCluster {
    // Before the directory: daemons end before it is removed.
    daemons: Daemons,
    directory: Directory,
    osds: u16,
    fsid: String,
    mon_hosts: String,
    admin_key: String,
    default_pool: String,
}

impl CephCluster {
    /// Starts a cluster with one pool, ready for I/O.
    ///
    /// # Errors
    /// If an option cannot work, a program is missing, or a daemon does not come up: the error holds the end of its output.
    pub fn start(options: &CephOptions) -> Result<Self, CephError> {
        start::start(options)
    }

    pub(crate) fn assemble(
        directory: Directory,
        options: &CephOptions,
        fsid: String,
        mon_hosts: String,
        admin_key: String,
    ) -> Self {
        let default_pool = options.pool.name.clone();
        Self {
            daemons: Daemons::default(),
            directory,
            osds: options.osds,
            fsid,
            mon_hosts,
            admin_key,
            default_pool,
        }
    }

    /// The folder that holds everything of this cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The configuration for clients: `rados_conf_read_file`, `-c`, `CEPH_CONF`. Its keyring holds `client.admin`.
    pub fn conf_path(&self) -> PathBuf {
        self.directory().join("ceph.conf")
    }

    /// The monitors as `mon_host` has them: `[v2:127.…:3300/0]`.
    pub fn mon_hosts(&self) -> &str {
        &self.mon_hosts
    }

    /// The cluster's id.
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// The key of `client.admin`.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// The pool that was made at the start.
    pub fn pool(&self) -> &str {
        &self.default_pool
    }

    /// How many OSDs it was started with.
    pub fn osds(&self) -> u16 {
        self.osds
    }

    /// Makes a replicated pool for RBD and waits until it takes writes.
    ///
    /// # Errors
    /// If it exists, or cannot be served by the OSDs there are.
    pub fn create_pool(&self, pool: &PoolOptions) -> Result<(), CephError> {
        let (size, min_size) = pool.resolved(self.osds);
        let placement_groups = (8 * self.osds).next_power_of_two().to_string();
        let (name, size) = (pool.name.as_str(), size.to_string());
        self.ceph(&[
            "osd",
            "pool",
            "create",
            name,
            &placement_groups,
            &placement_groups,
            "replicated",
            "replicated_rule",
            "--size",
            &size,
            "--autoscale-mode",
            "off",
        ])?;
        // What Ceph chooses by itself is what `resolved` says for a pool without a wish.
        if pool.min_size.is_some() {
            self.ceph(&["osd", "pool", "set", name, "min_size", &min_size.to_string()])?;
        }
        // Its first write waits for the placement groups.
        self.rbd(&["pool", "init", name]).map(drop)
    }

    /// Deletes a pool with everything in it.
    ///
    /// # Errors
    /// If the monitor refuses.
    pub fn delete_pool(&self, name: &str) -> Result<(), CephError> {
        self.ceph(&["osd", "pool", "delete", name, name, "--yes-i-really-really-mean-it"]).map(drop)
    }

    /// Makes `client.{user}` with these capabilities, pairs of service and capability, and returns its key.
    ///
    /// # Errors
    /// If the monitor refuses; an existing user with other capabilities is such a case.
    pub fn create_key(&self, user: &str, capabilities: &[(&str, &str)]) -> Result<String, CephError> {
        let client = format!("client.{user}");
        let mut arguments = vec!["auth", "get-or-create-key", client.as_str()];
        arguments.extend(capabilities.iter().flat_map(|(service, capability)| [*service, *capability]));
        Ok(self.ceph(&arguments)?.trim().to_owned())
    }

    /// Makes a key as a VM's process has it: it reads and writes images of `pool` and can blocklist nobody.
    ///
    /// # Errors
    /// As [`CephCluster::create_key`].
    pub fn create_vmm_key(&self, user: &str, pool: &str) -> Result<String, CephError> {
        self.create_key(user, &[("mon", "allow r"), ("osd", &format!("profile rbd pool={pool}"))])
    }

    /// Writes a configuration and a keyring for `client.{user}` and returns the configuration's path: for programs that take a
    /// user and a file but no key.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn write_client_conf(&self, user: &str, key: &str) -> Result<PathBuf, CephError> {
        let keyring = self.directory().join(format!("keyring.{user}"));
        let conf = self.directory().join(format!("client.{user}.conf"));
        let text = format!(
            "[global]\nfsid = {}\nmon host = {}\nkeyring = {}\n[client]\nadmin socket =\nlog file =\n",
            self.fsid,
            self.mon_hosts,
            keyring.display()
        );
        fs::write(&keyring, format!("[client.{user}]\n key = {key}\n"))
            .map_err(CephError::file("write", &keyring))?;
        fs::write(&conf, text).map_err(CephError::file("write", &conf))?;
        Ok(conf)
    }

    /// Runs `ceph` as the administrator and returns what it printed.
    ///
    /// # Errors
    /// If it fails or takes longer than a minute: commands that need a manager wait for ever.
    pub fn ceph(&self, arguments: &[&str]) -> Result<String, CephError> {
        run(self.command("ceph").args(arguments), COMMAND_DEADLINE)
    }

    /// Runs `rbd` as the administrator and returns what it printed.
    ///
    /// # Errors
    /// If it fails or takes longer than a minute.
    pub fn rbd(&self, arguments: &[&str]) -> Result<String, CephError> {
        run(self.command("rbd").args(arguments), COMMAND_DEADLINE)
    }

    /// Copies an image, as `pool/image`, into a new raw file, for a test that judges its content. What was never written is a
    /// hole in the file.
    ///
    /// # Errors
    /// If there is no such image, or the file exists.
    pub fn export(&self, image: &str, to: &Path) -> Result<(), CephError> {
        let to = to.to_string_lossy();
        self.rbd(&["export", "--no-progress", image, to.as_ref()]).map(drop)
    }

    /// Runs `rados` as the administrator and returns what it printed.
    ///
    /// # Errors
    /// If it fails or takes longer than a minute.
    pub fn rados(&self, arguments: &[&str]) -> Result<String, CephError> {
        run(self.command("rados").args(arguments), COMMAND_DEADLINE)
    }

    /// One of Ceph's client programs with this cluster's configuration, for a caller that handles the process itself.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.conf_path()).env_remove("CEPH_ARGS").env_remove("CEPH_CONF");
        command
    }

    /// The pid of a daemon that runs or is stopped.
    pub fn pid(&self, daemon: Daemon) -> Option<u32> {
        self.daemons.lock().get(&daemon).map(Running::pid)
    }

    /// Kills a daemon (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self, daemon: Daemon) -> Result<(), CephError> {
        let mut running = self.daemons.lock().remove(&daemon).ok_or_else(|| absent(daemon))?;
        running.kill();
        Ok(())
    }

    /// Stops a daemon (SIGSTOP): its host is lost, or hangs.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop(&self, daemon: Daemon) -> Result<(), CephError> {
        self.signal(daemon, Signal::STOP)
    }

    /// Lets a stopped daemon go on (SIGCONT).
    ///
    /// # Errors
    /// If it does not run.
    pub fn cont(&self, daemon: Daemon) -> Result<(), CephError> {
        self.signal(daemon, Signal::CONT)
    }

    /// Starts a daemon that was killed and waits until it serves.
    ///
    /// # Errors
    /// If it runs, or does not come up. An OSD needs the monitor for that.
    pub fn restart(&self, daemon: Daemon) -> Result<(), CephError> {
        self.spawn(daemon)?;
        self.wait_up(daemon)
    }

    /// Starts a daemon that was killed and does not wait.
    ///
    /// # Errors
    /// If the cluster has no such daemon, it runs, or cannot be started.
    pub fn spawn(&self, daemon: Daemon) -> Result<(), CephError> {
        if matches!(daemon, Daemon::Osd(number) if number >= self.osds) {
            return Err(CephError::Daemon {
                daemon: daemon.to_string(),
                state: "is not one of this cluster's",
            });
        }
        let mut daemons = self.daemons.lock();
        if daemons.get_mut(&daemon).is_some_and(Running::is_alive) {
            return Err(CephError::Daemon { daemon: daemon.to_string(), state: "runs already" });
        }
        // The socket of one that was killed would be taken for the new one's.
        fs::remove_file(daemon.socket(self.directory())).ok();
        let running = Running::start(daemon, self.directory())?;
        daemons.insert(daemon, running);
        Ok(())
    }

    /// Waits until a daemon serves: the monitor leads, an OSD is active.
    ///
    /// # Errors
    /// If it ends, or a minute passes.
    pub fn wait_up(&self, daemon: Daemon) -> Result<(), CephError> {
        start::wait_up(self.directory(), daemon, || {
            self.daemons.lock().get_mut(&daemon).is_some_and(Running::is_alive)
        })
    }

    /// What is left in the cluster: images, trash, locks, watchers, blocklist entries. Empty after a suite that leaks nothing.
    ///
    /// # Errors
    /// If the cluster does not answer.
    pub fn leaks(&self) -> Result<LeakReport, CephError> {
        LeakReport::collect(self)
    }

    /// Every process that names this cluster's configuration as an argument: its daemons, and clients that have not ended.
    pub fn processes(&self) -> Vec<u32> {
        directory::processes(self.directory())
    }

    /// Lets the cluster run on after this process, until [`LeftRunning::take_down`](crate::LeftRunning::take_down).
    ///
    /// # Errors
    /// If that cannot be noted in its directory.
    pub fn leave_running(self) -> Result<PathBuf, CephError> {
        let Self { daemons, directory, .. } = self;
        daemons.abandon();
        directory.leave()
    }

    fn signal(&self, daemon: Daemon, signal: Signal) -> Result<(), CephError> {
        let daemons = self.daemons.lock();
        let running = daemons.get(&daemon).ok_or_else(|| absent(daemon))?;
        running.signal(signal);
        Ok(())
    }
}

fn absent(daemon: Daemon) -> CephError {
    CephError::Daemon { daemon: daemon.to_string(), state: "does not run" }
}
