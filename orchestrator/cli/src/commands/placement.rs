//! Commands about nodes, policies, projects, places and moves.

use drover_client::{
    api::{
        DefragmentRequest, DrainRequest, MovesResponse, RebalanceRequest, SetProjectRequest, UndrainRequest,
        UpdateNodeRequest, UpdateSettingsRequest,
    },
    placement_api::{Policy, ProjectLimits, RebalanceMode, Reserve},
};

use crate::{
    Session,
    arguments::placement::{
        DrainOptions, Mode, NodeCommand, PlacementCommand, PolicyCommand, ProjectCommand, RackCommand,
        RebalanceCommand,
    },
    output::{
        ExplanationRow, Format, MoveRow, NodeRow, OperationRow, PolicyRow, ProjectRow, StatusRow,
        print_details, print_note, print_row, print_rows,
    },
};

use super::{
    constraints::{label_changes, percent, taint_changes, weights},
    rows, settle, vm,
};

pub(super) async fn node(session: &Session, command: NodeCommand) -> anyhow::Result<()> {
    let client = &session.client;
    let change = match command {
        NodeCommand::List => {
            return print_rows(session.format, &rows::<_, NodeRow>(client.list_nodes().await?));
        }
        NodeCommand::Show { node } => {
            return print_details(session.format, &NodeRow::from(client.get_node(&node).await?));
        }
        NodeCommand::Drain { node, drain } => {
            let request = DrainRequest { node, ..request(drain) };
            return moves(session, client.drain(request).await?).await;
        }
        NodeCommand::Undrain { node } => {
            let nodes = client.undrain(UndrainRequest { node, rack: String::new() }).await?;
            return print_rows(session.format, &rows::<_, NodeRow>(nodes));
        }
        NodeCommand::Label { node, labels } => {
            let (set_labels, remove_labels) = label_changes(&labels)?;
            UpdateNodeRequest { node, set_labels, remove_labels, ..UpdateNodeRequest::default() }
        }
        NodeCommand::Taint { node, taints } => {
            let (add_taints, remove_taints) = taint_changes(&taints)?;
            UpdateNodeRequest { node, add_taints, remove_taints, ..UpdateNodeRequest::default() }
        }
        NodeCommand::Cordon { node } => {
            UpdateNodeRequest { node, cordoned: Some(true), ..UpdateNodeRequest::default() }
        }
        NodeCommand::Uncordon { node } => {
            UpdateNodeRequest { node, cordoned: Some(false), ..UpdateNodeRequest::default() }
        }
        NodeCommand::Set { node, vcpu_overcommit, memory_overcommit, reserved_vcpus, reserved_memory } => {
            let reserved = reserved_vcpus.zip(reserved_memory);
            UpdateNodeRequest {
                node,
                vcpu_overcommit_percent: percent("--vcpu-overcommit", vcpu_overcommit)?,
                memory_overcommit_percent: percent("--memory-overcommit", memory_overcommit)?,
                reserved: reserved.map(|(vcpus, memory)| Reserve { vcpus, memory_bytes: memory.get() }),
                ..UpdateNodeRequest::default()
            }
        }
    };
    print_row(session.format, &NodeRow::from(client.update_node(change).await?))
}

fn request(options: DrainOptions) -> DrainRequest {
    DrainRequest { parallel: options.parallel, dry_run: options.dry_run, ..DrainRequest::default() }
}

pub(super) async fn rack(session: &Session, command: RackCommand) -> anyhow::Result<()> {
    match command {
        RackCommand::Drain { rack, drain } => {
            let request = DrainRequest { rack, ..request(drain) };
            moves(session, session.client.drain(request).await?).await
        }
        RackCommand::Undrain { rack } => {
            let nodes = session.client.undrain(UndrainRequest { node: String::new(), rack }).await?;
            print_rows(session.format, &rows::<_, NodeRow>(nodes))
        }
    }
}

/// Shows a plan, or follows the operation that carries it out.
async fn moves(session: &Session, response: MovesResponse) -> anyhow::Result<()> {
    let MovesResponse { moves, operation, summary } = response;
    let plan = rows::<_, MoveRow>(moves);
    let Some(operation) = operation else {
        if session.format == Format::Json || !plan.is_empty() {
            print_rows(session.format, &plan)?;
        }
        return print_note(session.format, &summary);
    };
    if session.format == Format::Table {
        print_rows(session.format, &plan)?;
        print_note(session.format, &summary)?;
    }
    match settle(session, operation).await? {
        Some(ended) => print_details(session.format, &OperationRow::from(ended)),
        None => Ok(()),
    }
}

pub(super) async fn rebalance(session: &Session, command: RebalanceCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        RebalanceCommand::Plan => {
            let request = RebalanceRequest { dry_run: true, ..RebalanceRequest::default() };
            moves(session, client.rebalance(request).await?).await
        }
        RebalanceCommand::Apply { parallel } => {
            let request = RebalanceRequest { parallel, ..RebalanceRequest::default() };
            moves(session, client.rebalance(request).await?).await
        }
        RebalanceCommand::Mode { mode } => {
            let settings = match mode {
                None => client.get_settings().await?,
                Some(mode) => {
                    let mode = match mode {
                        Mode::Manual => RebalanceMode::Manual,
                        Mode::Partial => RebalanceMode::Partial,
                        Mode::Automatic => RebalanceMode::Automatic,
                    };
                    let request = UpdateSettingsRequest {
                        rebalance: Some(mode.into()),
                        ..UpdateSettingsRequest::default()
                    };
                    client.update_settings(request).await?
                }
            };
            print_details(session.format, &StatusRow::new(client.placement_status().await?, settings))
        }
    }
}

pub(super) async fn project(session: &Session, command: ProjectCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        ProjectCommand::List => {
            print_rows(session.format, &rows::<_, ProjectRow>(client.list_projects().await?))
        }
        ProjectCommand::Set { name, vms, vcpus, memory, policy } => {
            let memory_bytes = memory.map(drover_units::Bytes::get);
            let limits = Some(ProjectLimits { vms, vcpus, memory_bytes });
            let project = client.set_project(SetProjectRequest { name, limits, policy }).await?;
            print_row(session.format, &ProjectRow::from(project))
        }
        ProjectCommand::Delete { name } => {
            client.delete_project(&name).await?;
            print_note(session.format, &format!("project {name} is deleted"))
        }
    }
}

pub(super) async fn placement(session: &Session, command: PlacementCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        PlacementCommand::Policy(command) => policy(session, command).await,
        // Answered before there was a session.
        PlacementCommand::Simulate(_) => Ok(()),
        PlacementCommand::Explain { vm } => {
            let answer = client.explain_spec(vm::spec(vm)?).await?;
            explained(session, answer)
        }
        PlacementCommand::Defragment { vm, moves: options } => {
            let request = DefragmentRequest {
                spec: Some(vm::spec(vm)?),
                dry_run: options.dry_run,
                parallel: options.parallel,
                ..DefragmentRequest::default()
            };
            moves(session, client.defragment(request).await?).await
        }
        PlacementCommand::Status => {
            let (status, settings) = (client.placement_status().await?, client.get_settings().await?);
            print_details(session.format, &StatusRow::new(status, settings))
        }
        PlacementCommand::Set { policy, failures_to_survive } => {
            let request =
                UpdateSettingsRequest { policy, failures_to_survive, ..UpdateSettingsRequest::default() };
            let settings = client.update_settings(request).await?;
            print_details(session.format, &StatusRow::new(client.placement_status().await?, settings))
        }
    }
}

/// Shows why a VM is placed as it is.
pub(super) fn explained(
    session: &Session,
    answer: drover_client::api::ExplainResponse,
) -> anyhow::Result<()> {
    let now = answer.explanations.into_iter().next().unwrap_or_default();
    print_details(session.format, &ExplanationRow::new(now, answer.when_placed))
}

async fn policy(session: &Session, command: PolicyCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        PolicyCommand::List => {
            print_rows(session.format, &rows::<_, PolicyRow>(client.list_policies().await?))
        }
        PolicyCommand::Show { name } => {
            let all = rows::<_, PolicyRow>(client.list_policies().await?);
            let found = all.into_iter().find(|policy| policy.name == name);
            let found = found.ok_or_else(|| drover_client::Error::NotFound {
                message: format!(
                    "name: there is no policy '{name}'; `drover placement policy list` shows what there is"
                ),
            })?;
            print_details(session.format, &found)
        }
        PolicyCommand::Set { name, base, weights: texts, seed } => {
            let policy = Policy { name, base, weights: weights(&texts)?, seed };
            print_row(session.format, &PolicyRow::from(client.set_policy(policy).await?))
        }
        PolicyCommand::Delete { name } => {
            client.delete_policy(&name).await?;
            print_note(session.format, &format!("policy {name} is deleted"))
        }
    }
}
