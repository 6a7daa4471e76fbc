//! Placement as people steer it: policies, projects, explanations.

use std::collections::BTreeSet;

use drover_cluster_state::{ClusterState, Name, PolicyRecord, Project};
use drover_driver::View;
use drover_placement_messages::{
    cluster_settings_from, cluster_settings_message, explanation_message, limits_from, limits_message,
    policy_from, policy_message,
};
use drover_ports::Store;
use drover_reconcile::{
    admission::{self, AdmissionError, UpdateSettings},
    built_in_policies, check_policy, explain, policy_names, request_of,
};
use drover_wire::{
    control::v1::{self as wire, placement_server::Placement},
    placement::v1 as shared,
};
use tonic::{Request, Response, Status};

use super::{Api, vms};
use crate::{
    convert,
    status::{gone, invalid, refused, submit_failed},
};

type Answer<T> = Result<Response<T>, Status>;

fn name(field: &str, text: &str) -> Result<Name, Status> {
    Name::new(text).map_err(|error| invalid(field, error, "a name such as 'team-1'"))
}

/// What the policies that come with Drover are for.
fn description(name: &str) -> &'static str {
    match name {
        "pack" => "fills the tightest host, so that large gaps stay whole",
        "spread" => "takes the emptiest host",
        "balance" => "uses CPU and memory of each host in equal parts",
        "least-fragmentation" => "keeps as many large shapes placeable as possible",
        "lifetime-aware" => "puts VMs together that end together (vm create --lifetime)",
        "energy" => "wakes no empty host",
        _ => "",
    }
}

fn policies(state: &ClusterState) -> Vec<wire::StoredPolicy> {
    let show = |name: Name| {
        let stored = state.policies.get(&name);
        let policy = stored.map_or_else(|| built_in(&name), |stored| policy_message(stored));
        wire::StoredPolicy {
            policy: Some(policy),
            built_in: stored.is_none(),
            description: if stored.is_none() { description(name.as_str()) } else { "" }.to_owned(),
            used_by: admission::policy_users(state, name.as_str()),
        }
    };
    policy_names(state).into_iter().map(show).collect()
}

/// A policy that comes with Drover, with its weights.
fn built_in(name: &Name) -> shared::Policy {
    let record =
        PolicyRecord { name: name.clone(), base: name.clone(), weights: Default::default(), seed: 0 };
    let weights = check_policy(&record).map(|policy| policy.weights.terms().to_vec()).unwrap_or_default();
    let weight = |(term, weight): (drover_placement::Term, u16)| shared::Weight {
        term: term.to_string(),
        weight: weight.into(),
    };
    let weights = weights.into_iter().filter(|(_, weight)| *weight > 0).map(weight).collect();
    shared::Policy { name: name.to_string(), base: name.to_string(), weights, seed: 0 }
}

fn project(state: &ClusterState, project: &Project) -> wire::Project {
    let usage = state.project_usage(project.name.as_str());
    wire::Project {
        name: project.name.to_string(),
        limits: Some(limits_message(project.limits)),
        policy: project.policy.as_ref().map(ToString::to_string).unwrap_or_default(),
        vms_used: usage.vms,
        vcpus_used: usage.taken.vcpus.get(),
        memory_used_bytes: usage.taken.memory.get(),
    }
}

fn explain_vm(view: View<'_>, text: &str) -> Result<wire::ExplainResponse, Status> {
    let vm = vms::find(view.state, text)?;
    let policy = view.book.policy_for(&vm.spec);
    let mut now = explain(view.book.inventory(), &request_of(vm), &policy);
    match (vm.ownership.node(), &now.chosen) {
        (Some(node), Some(choice)) if choice.node == node => {
            now.notes.insert(0, format!("it is on node {}, and would be placed there again", choice.name));
        }
        (Some(node), _) => {
            let on = view.state.node_name(node);
            now.notes.insert(0, format!("it is on node {on}; the above is what would be decided now"));
        }
        (None, _) => now.notes.insert(0, "it is on no node now".to_owned()),
    }
    let operation = vm.operation.and_then(|id| view.state.operations.get(&id));
    let placed = operation.and_then(|operation| operation.explanation.as_deref());
    Ok(wire::ExplainResponse {
        explanations: vec![explanation_message(&now)],
        when_placed: placed.map(explanation_message),
    })
}

fn explain_spec(view: View<'_>, spec: wire::VmSpec) -> Result<wire::ExplainResponse, AdmissionError> {
    let request = convert::create_vm(view.state, spec)?;
    let question = admission::question_of(view.state, &request, view.now.wall);
    let policy = view.book.policy_for_request(&question, request.constraints.preemption);
    let mut explanation = explain(view.book.inventory(), &question, &policy);
    if let Err(error) = admission::check_project(view.state, &request) {
        explanation.notes.push(error.to_string());
    }
    Ok(wire::ExplainResponse { explanations: vec![explanation_message(&explanation)], when_placed: None })
}

#[tonic::async_trait]
impl<S: Store> Placement for Api<S> {
    async fn list_policies(
        &self,
        _: Request<wire::ListPoliciesRequest>,
    ) -> Answer<wire::ListPoliciesResponse> {
        let policies = self.cluster.read(|view| policies(view.state)).await.map_err(gone)?;
        Ok(Response::new(wire::ListPoliciesResponse { policies }))
    }

    async fn set_policy(&self, request: Request<wire::SetPolicyRequest>) -> Answer<wire::StoredPolicy> {
        let policy = request.into_inner().policy.unwrap_or_default();
        let policy = policy_from(policy).map_err(|error| refused(&convert::within("policy")(error)))?;
        check_policy(&policy).map_err(|error| {
            invalid("policy", error, "`drover placement policy list` shows bases and terms")
        })?;
        let name = policy.name.clone();
        let set = self.cluster.submit(move |view| {
            admission::set_policy(view.state, &policy, view.now.wall).map(|txn| ((), txn))
        });
        set.await.map_err(submit_failed)?;
        let all = self.cluster.read(|view| policies(view.state)).await.map_err(gone)?;
        let stored = all.into_iter().find(|one| one.policy.as_ref().is_some_and(|p| p.name == name.as_str()));
        stored.map(Response::new).ok_or_else(|| Status::aborted("policy: it was deleted meanwhile"))
    }

    async fn delete_policy(
        &self,
        request: Request<wire::DeletePolicyRequest>,
    ) -> Answer<wire::DeletePolicyResponse> {
        let name = request.into_inner().name;
        let deleted = self.cluster.submit(move |view| {
            let txn = admission::delete_policy(view.state, &name, &built_in_policies(), view.now.wall)?;
            Ok(((), Some(txn)))
        });
        deleted.await.map_err(submit_failed)?;
        Ok(Response::new(wire::DeletePolicyResponse {}))
    }

    async fn get_settings(&self, _: Request<wire::GetSettingsRequest>) -> Answer<shared::Settings> {
        let settings = self.cluster.read(|view| view.state.settings()).await.map_err(gone)?;
        Ok(Response::new(cluster_settings_message(&settings)))
    }

    async fn update_settings(
        &self,
        request: Request<wire::UpdateSettingsRequest>,
    ) -> Answer<shared::Settings> {
        let request = request.into_inner();
        // Checked as a whole: what is absent is something valid.
        let checked = cluster_settings_from(shared::Settings {
            policy: request.policy.clone().unwrap_or_default(),
            rebalance: request.rebalance.unwrap_or_default(),
            failures_to_survive: request.failures_to_survive.unwrap_or_default(),
        });
        let checked = checked.map_err(|error| refused(&convert::within("settings")(error)))?;
        let update = UpdateSettings {
            policy: request.policy.map(|_| checked.policy),
            rebalance: request.rebalance.map(|_| checked.rebalance),
            failures_to_survive: request.failures_to_survive,
        };
        let updated = self.cluster.submit(move |view| {
            let policies: BTreeSet<Name> = policy_names(view.state);
            admission::update_settings(view.state, &update, &policies, view.now.wall).map(|txn| ((), txn))
        });
        updated.await.map_err(submit_failed)?;
        self.get_settings(Request::new(wire::GetSettingsRequest {})).await
    }

    async fn list_projects(
        &self,
        _: Request<wire::ListProjectsRequest>,
    ) -> Answer<wire::ListProjectsResponse> {
        let list =
            |view: View<'_>| view.state.projects.values().map(|one| project(view.state, one)).collect();
        let projects = self.cluster.read(list).await.map_err(gone)?;
        Ok(Response::new(wire::ListProjectsResponse { projects }))
    }

    async fn set_project(&self, request: Request<wire::SetProjectRequest>) -> Answer<wire::Project> {
        let request = request.into_inner();
        let of = name("name", &request.name)?;
        let policy = match request.policy.as_str() {
            "" => None,
            text => Some(name("policy", text)?),
        };
        let limits = limits_from(request.limits.unwrap_or_default());
        let set_name = of.clone();
        let set = self.cluster.submit(move |view| {
            let policies = policy_names(view.state);
            let policy = policy.as_ref();
            admission::set_project(view.state, &set_name, limits, policy, &policies, view.now.wall)
                .map(|txn| ((), txn))
        });
        set.await.map_err(submit_failed)?;
        let show = move |view: View<'_>| view.state.projects.get(&of).map(|one| project(view.state, one));
        let stored = self.cluster.read(show).await.map_err(gone)?;
        stored.map(Response::new).ok_or_else(|| Status::aborted("name: it was deleted meanwhile"))
    }

    async fn delete_project(
        &self,
        request: Request<wire::DeleteProjectRequest>,
    ) -> Answer<wire::DeleteProjectResponse> {
        let name = request.into_inner().name;
        let deleted = self.cluster.submit(move |view| {
            let txn = admission::delete_project(view.state, &name, view.now.wall)?;
            Ok(((), Some(txn)))
        });
        deleted.await.map_err(submit_failed)?;
        Ok(Response::new(wire::DeleteProjectResponse {}))
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Answer<wire::ExplainResponse> {
        let wire::ExplainRequest { vm, spec } = request.into_inner();
        let answer = move |view: View<'_>| match spec {
            Some(spec) if vm.is_empty() => explain_spec(view, spec).map_err(|error| refused(&error)),
            None if !vm.is_empty() => explain_vm(view, &vm),
            _ => Err(invalid(
                "vm",
                "it names neither, or both",
                "a VM that exists, or the spec of one that does not",
            )),
        };
        self.cluster.read(answer).await.map_err(gone)?.map(Response::new)
    }

    async fn get_placement_status(
        &self,
        _: Request<wire::GetPlacementStatusRequest>,
    ) -> Answer<wire::PlacementStatus> {
        let status = |view: View<'_>| {
            let (inventory, counts) = (view.book.inventory(), view.book.statistics());
            wire::PlacementStatus {
                hosts: u32::try_from(inventory.host_count()).unwrap_or(u32::MAX),
                vms: u32::try_from(inventory.held_count()).unwrap_or(u32::MAX),
                decisions: counts.decisions,
                refusals: counts.refusals,
                conflicts: counts.conflicts,
                preemptions: counts.preemptions,
                last_decision_us: counts.last_decision_ns.div_ceil(1000),
            }
        };
        self.cluster.read(status).await.map(Response::new).map_err(gone)
    }

    async fn drain(&self, request: Request<wire::DrainRequest>) -> Answer<wire::MovesResponse> {
        self.drain_nodes(request.into_inner()).await.map(Response::new)
    }

    async fn undrain(&self, request: Request<wire::UndrainRequest>) -> Answer<wire::UndrainResponse> {
        self.undrain_nodes(request.into_inner()).await.map(Response::new)
    }

    async fn rebalance(&self, request: Request<wire::RebalanceRequest>) -> Answer<wire::MovesResponse> {
        self.rebalance_cluster(request.into_inner()).await.map(Response::new)
    }

    async fn defragment(&self, request: Request<wire::DefragmentRequest>) -> Answer<wire::MovesResponse> {
        self.make_room(request.into_inner()).await.map(Response::new)
    }
}
