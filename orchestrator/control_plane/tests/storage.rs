//! Pools, volumes, snapshots and disk images over gRPC, on a directory and on a real Ceph cluster.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use clap::Parser as _;
use drover_control_plane::{Arguments, Config, ControlPlane};
use drover_test_ceph_cluster::{CephCluster, CephOptions};
use drover_wire::control::v1 as api;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, transport::Channel};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Cluster {
    folder: TempDir,
    ceph: Option<String>,
    channel: Channel,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

async fn run(
    folder: &Path,
    ceph: Option<&str>,
) -> (Channel, oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>) {
    fs::create_dir_all(folder.join("pool")).unwrap();
    let mut line = format!(
        "drover-control-plane --state-dir {0}/state --pool local=dir:{0}/pool --listen 127.0.0.1:0 \
         --import-allow 127.0.0.1",
        folder.display()
    );
    let authority = folder.join("authority/ca.pem");
    if authority.exists() {
        line += &format!(" --import-ca {}", authority.display());
    }
    if let Some(conf) = ceph {
        line += &format!(" --ceph main=conf:{conf}");
    }
    let config = Config::resolve(Arguments::parse_from(line.split_whitespace())).unwrap();
    let control_plane = ControlPlane::start(config).await.unwrap();
    let address = format!("http://{}", control_plane.address());
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = tokio::spawn(control_plane.run(async {
        let _told = stopped.await;
    }));
    (Channel::from_shared(address).unwrap().connect().await.unwrap(), stop, ended)
}

impl Cluster {
    async fn start(ceph: Option<&CephCluster>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ceph = ceph.map(|ceph| ceph.conf_path().display().to_string());
        let (channel, stop, ended) = run(folder.path(), ceph.as_deref()).await;
        Self { folder, ceph, channel, stop, ended }
    }

    /// Ends the control plane and starts another one on the same state.
    async fn restart(self) -> Self {
        let Self { folder, ceph, stop, ended, .. } = self;
        stop.send(()).unwrap();
        ended.await.unwrap().unwrap();
        let (channel, stop, ended) = run(folder.path(), ceph.as_deref()).await;
        Self { folder, ceph, channel, stop, ended }
    }

    fn volumes(&self) -> api::volumes_client::VolumesClient<Channel> {
        api::volumes_client::VolumesClient::new(self.channel.clone())
    }
    fn pools(&self) -> api::pools_client::PoolsClient<Channel> {
        api::pools_client::PoolsClient::new(self.channel.clone())
    }
    fn images(&self) -> api::disk_images_client::DiskImagesClient<Channel> {
        api::disk_images_client::DiskImagesClient::new(self.channel.clone())
    }

    async fn ended(&self, operation: api::Operation) -> api::Operation {
        let mut operations = api::operations_client::OperationsClient::new(self.channel.clone());
        let request = api::GetOperationRequest { id: operation.id };
        let mut stream = operations.watch_operation(request).await.unwrap().into_inner();
        let follow = async {
            let mut last = None;
            while let Ok(Some(operation)) = stream.message().await {
                last = Some(operation);
            }
            last.unwrap()
        };
        tokio::time::timeout(PATIENCE, follow).await.expect("an accepted operation ends")
    }

    async fn done(&self, begun: Result<tonic::Response<api::Operation>, Status>) -> api::Operation {
        let ended = self.ended(begun.unwrap().into_inner()).await;
        assert_eq!(ended.state(), api::OperationState::Done, "{ended:?}");
        ended
    }

    async fn import(&self, name: &str, pool: &str, sha256: &str, url: &str) -> api::Operation {
        let request = api::ImportDiskImageRequest {
            name: name.to_owned(),
            pool: pool.to_owned(),
            sha256: sha256.to_owned(),
            source: Some(api::import_disk_image_request::Source::Url(url.to_owned())),
            ..Default::default()
        };
        let begun = self.images().import_disk_image(request).await.unwrap().into_inner();
        self.ended(begun).await
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, expect: &str) {
    let status = outcome.expect_err("must be refused");
    assert!(status.code() == code && status.message().contains(expect), "{status:?}");
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The head of a request, in lower case.
fn request(connection: &mut impl Read) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && connection.read(&mut byte).unwrap_or(0) == 1 {
        request.push(byte[0]);
    }
    String::from_utf8_lossy(&request).to_lowercase()
}

fn answer(connection: &mut (impl Read + Write), content: &[u8], cut: usize) {
    let text = request(connection);
    let range = text.lines().find_map(|line| line.strip_prefix("range: bytes="));
    let start: usize = range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let (status, all) = (if start > 0 { "206 Partial Content" } else { "200 OK" }, content.len());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{all}\r\n\r\n",
        all - start,
        all - 1
    );
    let body = &content[start..all.min(start.saturating_add(cut))];
    let _gone = connection.write_all(&[head.as_bytes(), body].concat());
}

/// Serves on `address`; gives back its port.
fn listen(address: &str, mut serve: impl FnMut(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(|connection| serve(connection.unwrap())));
    port
}

/// A web server that cuts each answer off after `cut` bytes, and takes up where it is asked to.
fn serve(content: Vec<u8>, cut: usize) -> String {
    let port = listen("127.0.0.1", move |mut connection| answer(&mut connection, &content, cut));
    format!("http://user:secret@127.0.0.1:{port}/disk?token=secret")
}

/// A web server that only points to another place.
fn redirect(to: String) -> String {
    let port = listen("127.0.0.1", move |mut connection| {
        let _request = request(&mut connection);
        let head = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        let _gone = connection.write_all(head.as_bytes());
    });
    format!("http://127.0.0.1:{port}/disk")
}

/// Who vouches for web servers: a certificate and its key, in a folder.
struct Authority(PathBuf);

fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

impl Authority {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        openssl(
            &folder,
            &format!("req -x509 {NEW_KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"),
        );
        Self(folder)
    }

    fn certificate(&self) -> PathBuf {
        self.0.join("ca.pem")
    }
}

/// The same over TLS, by a server that the authority vouches for.
fn serve_tls(content: Vec<u8>, authority: &Authority) -> String {
    let folder = &authority.0;
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl(folder, &format!("req {NEW_KEY} -keyout server.key -out server.csr -subj /CN=server"));
    openssl(
        folder,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    );
    let certificate = CertificateDer::from_pem_file(folder.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let port = listen("127.0.0.1", move |connection| {
        let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::StreamOwned::new(session, connection);
        answer(&mut stream, &content, usize::MAX);
        stream.conn.send_close_notify();
        let _gone = stream.flush();
    });
    format!("https://127.0.0.1:{port}/disk")
}

/// A disk of 5 MiB with something in it.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 5 << 20];
    disk[..4].copy_from_slice(b"head");
    let middle = 3 << 20;
    for (at, byte) in disk[middle..middle + (1 << 20)].iter_mut().enumerate() {
        *byte = u8::try_from(at % 251).unwrap();
    }
    disk
}

/// The life of disks in a pool, whatever its kind.
async fn lives(mut cluster: Cluster, pool: &str) -> Cluster {
    let (raw, pool) = (disk(), pool.to_owned());
    let hash = sha256(&raw);
    let url = serve(raw.clone(), 1 << 20);
    let imported = cluster.import("disk", &pool, &hash, &url).await;
    assert_eq!(imported.state(), api::OperationState::Done, "cut four times, and whole: {imported:?}");
    let get = |image: &str| api::GetDiskImageRequest { image: image.to_owned() };
    let image = cluster.images().get_disk_image(get("disk")).await.unwrap().into_inner();
    assert_eq!((image.size_bytes, image.format()), (5 << 20, api::ImageFormat::Raw));
    assert!(!format!("{image:?}").contains("secret"), "{image:?}");
    let wrong = cluster.import("wrong", &pool, &"ab".repeat(32), &serve(raw.clone(), usize::MAX)).await;
    assert!(wrong.reason.contains("sha256: the file that came has"), "{wrong:?}");
    refused(cluster.images().get_disk_image(get("wrong")).await, Code::NotFound, "wrong");
    // The same file again is there at once, even where no server is.
    let again = cluster.import("again", &pool, &hash, "http://127.0.0.1:1/none").await;
    assert_eq!(again.state(), api::OperationState::Done, "{again:?}");

    let clone = api::CloneVolumeRequest {
        name: "root".to_owned(),
        size_bytes: 8 << 20,
        source: Some(api::clone_volume_request::Source::Image("disk".to_owned())),
        ..Default::default()
    };
    cluster.done(cluster.volumes().clone_volume(clone).await).await;
    let snapshot = || Some(api::SnapshotName { volume: "root".to_owned(), snapshot: "first".to_owned() });
    let create = api::CreateSnapshotRequest {
        request_id: "once".to_owned(),
        volume: "root".to_owned(),
        name: "first".to_owned(),
    };
    let first = cluster.done(cluster.volumes().create_snapshot(create.clone()).await).await;
    let second = cluster.done(cluster.volumes().create_snapshot(create).await).await;
    assert_eq!(first.id, second.id, "a repeated request is the same operation");
    let resize =
        |size_bytes| api::ResizeVolumeRequest { volume: "root".to_owned(), size_bytes, ..Default::default() };
    cluster.done(cluster.volumes().resize_volume(resize(16 << 20)).await).await;
    refused(
        cluster.volumes().resize_volume(resize(1 << 20)).await,
        Code::InvalidArgument,
        "not made smaller",
    );
    let volume = api::GetVolumeRequest { volume: "root".to_owned() };
    let grown = cluster.volumes().get_volume(volume.clone()).await.unwrap().into_inner();
    assert_eq!((grown.size_bytes, grown.snapshot_count), (16 << 20, 1));

    let protect =
        |protect| api::ProtectSnapshotRequest { snapshot: snapshot(), protect, ..Default::default() };
    cluster.done(cluster.volumes().protect_snapshot(protect(true)).await).await;
    let delete = || api::DeleteSnapshotRequest { snapshot: snapshot(), ..Default::default() };
    refused(
        cluster.volumes().delete_snapshot(delete()).await,
        Code::FailedPrecondition,
        "'first' is protected",
    );
    let delete_volume =
        |volume: &str| api::DeleteVolumeRequest { volume: volume.to_owned(), request_id: String::new() };
    refused(
        cluster.volumes().delete_volume(delete_volume("root")).await,
        Code::FailedPrecondition,
        "'first'",
    );
    cluster.done(cluster.volumes().protect_snapshot(protect(false)).await).await;
    let roll_back = api::RollbackSnapshotRequest { snapshot: snapshot(), ..Default::default() };
    cluster.done(cluster.volumes().rollback_snapshot(roll_back).await).await;
    let back = cluster.volumes().get_volume(volume).await.unwrap().into_inner();
    assert_eq!(back.size_bytes, 8 << 20, "size and content of the snapshot");

    cluster = cluster.restart().await;
    let copy_of = |image: &str, name: &str, pool: &str| api::CopyDiskImageRequest {
        request_id: String::new(),
        image: image.to_owned(),
        name: name.to_owned(),
        pool: pool.to_owned(),
    };
    cluster.done(cluster.images().copy_disk_image(copy_of("disk", "copy", "local")).await).await;
    let copied = fs::read(cluster.folder.path().join(format!("pool/disk-images/{hash}.raw"))).unwrap();
    assert!(copied == raw, "what was imported in parts and copied is what was sent");

    let delete_image =
        |image: &str| api::DeleteDiskImageRequest { image: image.to_owned(), ..Default::default() };
    cluster.done(cluster.images().delete_disk_image(delete_image("again")).await).await;
    cluster.done(cluster.volumes().delete_snapshot(delete()).await).await;
    if pool != "local" {
        let needed = cluster.images().delete_disk_image(delete_image("disk")).await;
        refused(needed, Code::FailedPrecondition, "volume 'root'");
    }
    cluster.volumes().delete_volume(delete_volume("root")).await.unwrap();
    for image in ["disk", "copy"] {
        cluster.done(cluster.images().delete_disk_image(delete_image(image)).await).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_live_in_a_directory() {
    let cluster = lives(Cluster::start(None).await, "local").await;
    for folder in ["volumes", "disk-images"] {
        let left = fs::read_dir(cluster.folder.path().join("pool").join(folder)).unwrap().count();
        assert_eq!(left, 0, "nothing is left in {folder}");
    }
    let rbd = api::CreatePoolRequest {
        name: "fast".to_owned(),
        kind: api::PoolKind::Rbd.into(),
        ceph_pool: "rbd".to_owned(),
        ..Default::default()
    };
    refused(cluster.pools().create_pool(rbd).await, Code::FailedPrecondition, "knows no Ceph cluster");
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_live_in_a_ceph_pool() {
    if !drover_test_prerequisites::ceph() {
        return;
    }
    let ceph = CephCluster::start(&CephOptions::default()).unwrap();
    let cluster = Cluster::start(Some(&ceph)).await;
    let create = |ceph_pool: &str| api::CreatePoolRequest {
        name: "fast".to_owned(),
        kind: api::PoolKind::Rbd.into(),
        ceph_pool: ceph_pool.to_owned(),
        ..Default::default()
    };
    let begun = cluster.pools().create_pool(create("nope")).await.unwrap().into_inner();
    let missing = cluster.ended(begun).await;
    assert!(missing.reason.contains("has no pool 'nope'"), "{missing:?}");
    cluster.done(cluster.pools().create_pool(create("rbd")).await).await;
    let get = api::GetPoolRequest { pool: "fast".to_owned() };
    let pool = cluster.pools().get_pool(get).await.unwrap().into_inner();
    assert_eq!((pool.problem.as_str(), pool.kind(), pool.configured), ("", api::PoolKind::Rbd, false));
    let key = ceph.ceph(&["auth", "get-key", &format!("client.{}", pool.user)]).unwrap();
    assert!(!key.trim().is_empty() && !format!("{pool:?}").contains(key.trim()), "the key does not show");

    let cluster = lives(cluster, "fast").await;
    let delete = api::DeletePoolRequest { pool: "fast".to_owned(), ..Default::default() };
    cluster.done(cluster.pools().delete_pool(delete).await).await;
    assert!(!ceph.ceph(&["auth", "ls"]).unwrap().contains(&pool.user), "the key is gone");
    let Cluster { stop, ended, .. } = cluster;
    stop.send(()).unwrap();
    ended.await.unwrap().unwrap();
    let leaks = ceph.leaks().unwrap();
    assert!(leaks.is_empty(), "{leaks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qcow2_image_is_the_disk_it_stands_for() {
    if !drover_test_prerequisites::is_installed("qemu-img") {
        drover_test_prerequisites::skipped("qemu-img is not installed");
        return;
    }
    let cluster = Cluster::start(None).await;
    let folder = cluster.folder.path().to_owned();
    fs::write(folder.join("disk.raw"), disk()).unwrap();
    for (name, options) in [("plain", &[][..]), ("packed", &["-c"][..])] {
        let file = folder.join(name);
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args(options)
            .args([&folder.join("disk.raw"), &file])
            .status();
        assert!(made.unwrap().success());
        let bytes = fs::read(&file).unwrap();
        let hash = sha256(&bytes);
        let imported = cluster.import(name, "local", &hash, &serve(bytes, 1 << 19)).await;
        assert_eq!(imported.state(), api::OperationState::Done, "{imported:?}");
        let read = fs::read(folder.join(format!("pool/disk-images/{hash}.raw"))).unwrap();
        assert!(read == disk(), "{name}");
    }
}

/// What only the host of the control plane reaches is not reached for its clients, however it is called.
#[tokio::test(flavor = "multi_thread")]
async fn files_come_from_where_the_configuration_permits() {
    let cluster = Cluster::start(None).await;
    let (raw, hash) = (disk(), sha256(&disk()));
    let untouched = listen("127.0.0.2", |_| panic!("nobody may connect"));
    let refused = [
        format!("http://127.0.0.2:{untouched}/disk"),
        format!("https://127.0.0.2:{untouched}/disk"),
        format!("http://2130706434:{untouched}/disk"),
        format!("http://[::1]:{untouched}/disk"),
        format!("http://[::ffff:127.0.0.2]:{untouched}/disk"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://10.0.0.1/disk".to_owned(),
        // Allowed itself, but not where it points to.
        redirect(format!("http://127.0.0.2:{untouched}/disk")),
        redirect("http://169.254.169.254/latest/meta-data".to_owned()),
    ];
    for (number, url) in refused.iter().enumerate() {
        let ended = cluster.import(&format!("no-{number}"), "local", &hash, url).await;
        assert_eq!(ended.state(), api::OperationState::Failed, "{url}: {ended:?}");
        assert!(ended.reason.contains("url: its server is not at a public address"), "{url}: {ended:?}");
        assert!(!ended.reason.contains("127.0.0"), "what a name means is not told: {ended:?}");
    }
    let moved = cluster.import("moved", "local", &hash, &redirect(serve(raw.clone(), usize::MAX))).await;
    assert_eq!(moved.state(), api::OperationState::Done, "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_over_https_from_servers_that_are_vouched_for() {
    if !drover_test_prerequisites::is_installed("openssl") {
        drover_test_prerequisites::skipped("openssl is not installed");
        return;
    }
    let cluster = Cluster::start(None).await;
    let ours = Authority::new(cluster.folder.path().join("authority"));
    assert!(ours.certificate().exists());
    // Known from now on.
    let cluster = cluster.restart().await;
    let stranger = Authority::new(cluster.folder.path().join("stranger"));
    let (raw, hash) = (disk(), sha256(&disk()));
    let strange = cluster.import("strange", "local", &hash, &serve_tls(raw.clone(), &stranger)).await;
    assert_eq!(strange.state(), api::OperationState::Failed, "{strange:?}");
    let known = cluster.import("known", "local", &hash, &serve_tls(raw.clone(), &ours)).await;
    assert_eq!(known.state(), api::OperationState::Done, "{known:?}");
    let copied = fs::read(cluster.folder.path().join(format!("pool/disk-images/{hash}.raw"))).unwrap();
    assert!(copied == raw);
}
