//! From nothing to a cluster that serves I/O. What can run side by side does: mkfs of the OSDs beside that of the monitor, the
//! making of the pool beside the start of the OSDs.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use crate::{
    CephCluster,
    command::{COMMAND_DEADLINE, run, wait_until},
    configuration::{Identity, conf, crush, encode_key, keyring},
    daemon::Daemon,
    directory::Directory,
    error::CephError,
    options::CephOptions,
};

/// Ceph's own port for protocol version 2. Each cluster has an address of its own, so none competes for it.
const MON_PORT: u16 = 3300;
/// The failure domain is the host, and each OSD is one: more would only be slow.
const OSDS_MAX: u16 = 9;
/// Less than this and BlueStore refuses its own metadata.
const OSD_BYTES_MIN: u64 = 1 << 30;
/// Longest time a daemon may take until it answers, on a busy machine.
const DAEMON_DEADLINE: Duration = Duration::from_secs(60);
/// How many addresses are tried. There are 16 million.
const ADDRESS_TRIES: usize = 50;

pub(crate) fn start(options: &CephOptions) -> Result<CephCluster, CephError> {
    validate(options)?;
    let directory = Directory::create()?;
    let address = free_address()?;
    let fsid = read_line("/proc/sys/kernel/random/uuid")?;
    let mon_hosts = format!("[v2:{address}:{MON_PORT}/0]");
    let identity = Identity {
        directory: directory.path(),
        fsid: &fsid,
        address: &address.to_string(),
        mon_hosts: &mon_hosts,
    };
    let admin_key = write_files(&identity, options)?;
    // From here on a failure drops this value, which takes down what has started.
    let cluster = CephCluster::assemble(directory, options, fsid, mon_hosts, admin_key);
    make_stores(&cluster, options.osds)?;
    let daemons = (0..options.osds).map(Daemon::Osd);
    for daemon in daemons {
        cluster.spawn(daemon)?;
    }
    cluster.create_pool(&options.pool)?;
    for osd in 0..options.osds {
        cluster.wait_up(Daemon::Osd(osd))?;
    }
    Ok(cluster)
}

fn validate(options: &CephOptions) -> Result<(), CephError> {
    if options.osds == 0 || options.osds > OSDS_MAX {
        return Err(CephError::Option { field: "osds", value: options.osds.into(), valid: "1 to 9" });
    }
    if options.osd_bytes < OSD_BYTES_MIN {
        return Err(CephError::Option {
            field: "osd_bytes",
            value: options.osd_bytes,
            valid: "1 GiB or more",
        });
    }
    Ok(())
}

/// Every address of 127.0.0.0/8 is this machine: one per cluster keeps their ports apart.
fn free_address() -> Result<Ipv4Addr, CephError> {
    let mut refused = None;
    for _ in 0..ADDRESS_TRIES {
        let address = Ipv4Addr::new(127, fastrand::u8(1..=254), fastrand::u8(..), fastrand::u8(1..=254));
        match TcpListener::bind((address, MON_PORT)) {
            Ok(_) => return Ok(address),
            Err(error) => refused = Some(error),
        }
    }
    let source = refused.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
    Err(CephError::File { what: "bind a loopback address for", path: "ceph-mon".into(), source })
}

fn write_files(identity: &Identity<'_>, options: &CephOptions) -> Result<String, CephError> {
    let at = |name: &str| identity.directory.join(name);
    for folder in ["run", "log", "crash", "mon.a"] {
        fs::create_dir(at(folder)).map_err(CephError::file("make", at(folder)))?;
    }
    for osd in 0..options.osds {
        let folder = at(&format!("osd.{osd}"));
        fs::create_dir(&folder).map_err(CephError::file("make", &folder))?;
    }
    let (keys, admin_key) = keyring(options.osds, make_key)?;
    for (name, text) in
        [("ceph.conf", conf(identity, options)), ("crush.txt", crush(options.osds)), ("keyring", keys)]
    {
        fs::write(at(name), text).map_err(CephError::file("write", at(name)))?;
    }
    Ok(admin_key)
}

fn make_key() -> Result<String, CephError> {
    let path = "/dev/urandom";
    let mut secret = [0; 16];
    let mut file = fs::File::open(path).map_err(CephError::file("open", path))?;
    file.read_exact(&mut secret).map_err(CephError::file("read", path))?;
    Ok(encode_key(&secret))
}

fn read_line(path: &str) -> Result<String, CephError> {
    let text = fs::read_to_string(path).map_err(CephError::file("read", path))?;
    Ok(text.trim().to_owned())
}

/// Makes the stores of all daemons and starts the monitor as soon as its own is there. OSDs need no monitor to be made.
fn make_stores(cluster: &CephCluster, osds: u16) -> Result<(), CephError> {
    let directory = cluster.directory();
    thread::scope(|scope| {
        let made: Vec<_> = (0..osds).map(|osd| scope.spawn(move || make_osd(directory, osd))).collect();
        let monitor = make_mon(directory, osds, cluster.fsid(), cluster.mon_hosts())
            .and_then(|()| cluster.spawn(Daemon::Mon))
            .and_then(|()| cluster.wait_up(Daemon::Mon));
        for osd in made {
            osd.join().expect("making an OSD does not panic")?;
        }
        monitor
    })
}

fn make_osd(directory: &Path, osd: u16) -> Result<(), CephError> {
    let uuid = read_line("/proc/sys/kernel/random/uuid")?;
    let conf = directory.join("ceph.conf");
    let mut command = Command::new("ceph-osd");
    command.arg("-c").arg(conf).args([
        "--no-mon-config",
        "--mkfs",
        "-i",
        &osd.to_string(),
        "--osd-uuid",
        &uuid,
    ]);
    run(&mut command, COMMAND_DEADLINE).map(drop)
}

/// The monitor's first store holds the CRUSH map, the OSDs and every key: no command has to add them one by one.
fn make_mon(directory: &Path, osds: u16, fsid: &str, mon_hosts: &str) -> Result<(), CephError> {
    let at = |name: &str| directory.join(name).display().to_string();
    let (conf, text, crush) = (at("ceph.conf"), at("crush.txt"), at("crush"));
    let (osdmap, monmap, keyring) = (at("osdmap"), at("monmap"), at("keyring"));
    let osds = osds.to_string();
    let steps: [&[&str]; 5] = [
        &["crushtool", "-c", &text, "-o", &crush],
        &["osdmaptool", "-c", &conf, "--createsimple", &osds, &osdmap],
        &["osdmaptool", "-c", &conf, "--import-crush", &crush, &osdmap],
        &[
            "monmaptool",
            "-c",
            &conf,
            "--create",
            "--fsid",
            fsid,
            "--enable-all-features",
            "--set-min-mon-release",
            "pacific",
            "--addv",
            "a",
            mon_hosts,
            &monmap,
        ],
        &[
            "ceph-mon",
            "-c",
            &conf,
            "--mkfs",
            "-i",
            "a",
            "--monmap",
            &monmap,
            "--osdmap",
            &osdmap,
            "--keyring",
            &keyring,
        ],
    ];
    for step in steps {
        run(Command::new(step[0]).args(&step[1..]), COMMAND_DEADLINE)?;
    }
    Ok(())
}

/// Waits until `daemon` says on its admin socket that it serves.
pub(crate) fn wait_up(
    directory: &Path,
    daemon: Daemon,
    mut alive: impl FnMut() -> bool,
) -> Result<(), CephError> {
    let socket = daemon.socket(directory);
    let (question, states): (_, &[&str]) = match daemon {
        Daemon::Mon => ("mon_status", &["leader"]),
        Daemon::Osd(_) => ("status", &["active"]),
    };
    wait_until(&format!("{daemon} to serve"), DAEMON_DEADLINE, || {
        if !alive() {
            let log = fs::read_to_string(directory.join(format!("log/{daemon}.out"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            return Err(CephError::Failed { command: daemon.program().to_owned(), output: end });
        }
        let state = crate::admin_socket::ask(&socket, question);
        let serves = state.as_ref().and_then(|state| state["state"].as_str());
        Ok(serves.is_some_and(|state| states.contains(&state)).then_some(()))
    })
}
