//! What is told of a VM, and how refusals look on the wire.

use drover_node_supervisor::{Refusal, VmView};
use drover_wire::{
    node::v1::VmStatus,
    vm::v1::{VmInfo, VmState},
};
use tonic::Status;

/// A VM's status from its last report.
pub(crate) fn vm_status(view: VmView, info: &VmInfo, exit: Option<&str>) -> VmStatus {
    let mut info = info.clone();
    if info.owner_epoch == 0 {
        info.owner_epoch = view.epoch.get();
    }
    if !view.ended {
        if info.state() == VmState::Unspecified {
            info.set_state(VmState::Empty);
            info.detail = "vmmd has not reported yet".to_owned();
        }
        return VmStatus { info: Some(info), process_ended: false, exit: String::new() };
    }
    let exit = exit.unwrap_or("no process was started").to_owned();
    if info.state() != VmState::Stopped {
        info.set_state(VmState::Stopped);
        // Newer than everything the process has said.
        info.revision += 1;
    }
    VmStatus { info: Some(info), process_ended: true, exit }
}

/// A refusal as a gRPC status. UNAVAILABLE means that the same command may succeed a little later.
pub(crate) fn refused(refusal: Refusal, launch_failure: Option<Status>) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NoEpoch => Status::invalid_argument(text),
        Refusal::StaleEpoch { .. }
        | Refusal::OtherEpoch { .. }
        | Refusal::AlreadyEnded { .. }
        | Refusal::Occupied { .. } => Status::failed_precondition(text),
        Refusal::NoLease | Refusal::Reaping | Refusal::Ending | Refusal::Starting => {
            Status::unavailable(text)
        }
        Refusal::UnknownVm => Status::not_found(text),
        Refusal::Superseded => Status::aborted(text),
        Refusal::LaunchFailed => launch_failure.unwrap_or_else(|| Status::internal(text)),
        Refusal::EndOverdue => Status::deadline_exceeded(text),
    }
}

#[cfg(test)]
mod tests {
    use drover_ids::{OwnerEpoch, VmId};
    use drover_node_supervisor::{Run, VmState as Known};

    use super::*;

    fn view(ended: bool) -> VmView {
        VmView {
            vm: VmId::from_u128(1),
            run: Run(1),
            epoch: OwnerEpoch::new(4),
            state: Known::Running,
            ended,
        }
    }

    fn info(state: VmState) -> VmInfo {
        VmInfo { state: state.into(), revision: 7, owner_epoch: 4, ..VmInfo::default() }
    }

    #[test]
    fn a_process_that_died_is_reported_as_stopped_and_newer() {
        let status = vm_status(view(true), &info(VmState::Running), Some("killed by signal 9"));
        let told = status.info.unwrap();
        assert_eq!((told.state(), told.revision, status.process_ended), (VmState::Stopped, 8, true));
        assert_eq!(status.exit, "killed by signal 9");
    }

    #[test]
    fn a_process_that_has_not_reported_has_its_recorded_epoch() {
        let status = vm_status(view(false), &VmInfo::default(), None);
        let told = status.info.unwrap();
        assert_eq!((told.state(), told.owner_epoch, status.process_ended), (VmState::Empty, 4, false));
    }

    #[test]
    fn a_failed_launch_answers_with_its_own_cause() {
        let status = refused(Refusal::LaunchFailed, Some(Status::failed_precondition("no image")));
        assert_eq!(status.message(), "no image");
    }
}
