//! Devices that come and go over loopback, with agents that pretend to run VMs: what is kept where a node refuses, or does not
//! answer, and where the control plane dies. On real VMs: `tests/e2e`.
#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, which waits with a deadline"
)]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::time::{Duration, Instant};

use drover_wire::{control::v1 as api, vm::v1 as vm};
use support::{Cluster, FakeAgent, PATIENCE, kernel};
use tonic::{Code, Response, Status};

async fn attach(cluster: &Cluster) -> Result<api::Vm, Status> {
    let request = api::AttachVolumeRequest {
        vm: "web".to_owned(),
        volume: "more".to_owned(),
        ..api::AttachVolumeRequest::default()
    };
    cluster.vms().await.attach_volume(request).await.map(Response::into_inner)
}

async fn volumes(cluster: &Cluster) -> usize {
    cluster.vm("web").await.unwrap().spec.unwrap().volumes.len()
}

/// Waits until the agent has been told of a volume so often.
async fn told(agent: &FakeAgent, volume: &str, times: usize) {
    let deadline = Instant::now() + PATIENCE;
    let count = || agent.attached.lock().unwrap().iter().filter(|told| *told == volume).count();
    while count() < times {
        assert!(Instant::now() < deadline, "told {} times", count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_node_refuses_is_not_kept_and_what_it_does_not_answer_is_told_again() {
    let mut cluster = Cluster::start().await;
    let (agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    cluster.create_volume("data").await;
    let more = cluster.create_volume("more").await.id;
    let begun = cluster.create_vm("web", &["data"]).await.unwrap();
    cluster.done(begun).await;
    let next = |code| agent.refusals.lock().unwrap().push(code);

    for certain in [Code::FailedPrecondition, Code::Aborted] {
        next(certain);
        let error = attach(&cluster).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("not today"), "{error}");
        assert_eq!(volumes(&cluster).await, 1);
    }

    next(Code::Unavailable);
    next(Code::Unavailable);
    let error = attach(&cluster).await.unwrap_err();
    assert!(error.code() == Code::Unavailable && error.message().contains("it is kept"), "{error}");
    assert_eq!(volumes(&cluster).await, 2);
    told(&agent, &more, 1).await;
    // Whoever has lost the answer asks again, and a refusal does not take away what is there.
    next(Code::FailedPrecondition);
    attach(&cluster).await.unwrap_err();
    assert_eq!(volumes(&cluster).await, 2);
    attach(&cluster).await.unwrap();

    let before = agent.attached.lock().unwrap().iter().filter(|told| **told == more).count();
    cluster.stop().await;
    cluster.start_again().await;
    // The control plane has another address now. Whoever beats there is a node that it knows, by the address of before.
    let (next_agent, _next_tasks) = FakeAgent::start(&cluster, 1).await;
    next_agent.vms().clone_from(&agent.vms());
    told(&agent, &more, before + 1).await;
    assert!(before >= 2, "{before}");

    let request = api::DetachVolumeRequest {
        vm: "web".to_owned(),
        volume: "more".to_owned(),
        ..api::DetachVolumeRequest::default()
    };
    let refused = cluster
        .volumes()
        .await
        .delete_volume(api::DeleteVolumeRequest { volume: "more".to_owned(), ..Default::default() })
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    cluster.vms().await.detach_volume(request).await.unwrap();
    assert_eq!(volumes(&cluster).await, 1);
    cluster
        .volumes()
        .await
        .delete_volume(api::DeleteVolumeRequest { volume: "more".to_owned(), ..Default::default() })
        .await
        .unwrap();
}

/// Waits until the last that the agent has heard of the volume's limits is this.
async fn limited(agent: &FakeAgent, volume: &str, writes: u64) {
    let deadline = Instant::now() + PATIENCE;
    let told = || agent.limited.lock().unwrap().clone();
    while told().last() != Some(&(volume.to_owned(), writes)) {
        assert!(Instant::now() < deadline, "{:?}", told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn limits_that_a_node_has_not_heard_of_it_is_told_again() {
    let mut cluster = Cluster::start().await;
    let (agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    let data = cluster.create_volume("data").await.id;
    let begun = cluster.create_vm("web", &["data"]).await.unwrap();
    cluster.done(begun).await;
    let limit = |writes| api::SetLimitsRequest {
        vm: "web".to_owned(),
        device: Some(api::set_limits_request::Device::Volume("data".to_owned())),
        limits: Some(vm::Limits {
            outbound: Some(vm::Limit {
                requests: Some(vm::Rate { per_second: writes, burst: 0 }),
                ..vm::Limit::default()
            }),
            ..vm::Limits::default()
        }),
    };
    agent.limit_refusals.lock().unwrap().push(Code::Unavailable);
    let error = cluster.vms().await.set_limits(limit(40)).await.unwrap_err();
    assert!(error.code() == Code::Unavailable && error.message().contains("are kept"), "{error}");
    limited(&agent, &data, 40).await;

    // Limits that are lifted leave nothing of themselves, and are as much news.
    agent.limit_refusals.lock().unwrap().push(Code::Unavailable);
    let lifted = api::SetLimitsRequest { limits: None, ..limit(1) };
    cluster.vms().await.set_limits(lifted).await.unwrap_err();
    limited(&agent, &data, 0).await;
    cluster.vms().await.set_limits(limit(50)).await.unwrap();

    // A control plane that comes back does not know what its predecessor has told.
    cluster.stop().await;
    agent.limited.lock().unwrap().clear();
    cluster.start_again().await;
    let (next_agent, _next_tasks) = FakeAgent::start(&cluster, 1).await;
    next_agent.vms().clone_from(&agent.vms());
    limited(&agent, &data, 50).await;
}
