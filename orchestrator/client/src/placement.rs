//! Placement: policies, projects, explanations, and moves of many VMs.

use crate::{
    Client, Result,
    api::{
        CreateVmGroupRequest, DefragmentRequest, DeletePolicyRequest, DeleteProjectRequest, DrainRequest,
        ExplainRequest, ExplainResponse, GetPlacementStatusRequest, GetSettingsRequest, ListPoliciesRequest,
        ListProjectsRequest, MovesResponse, Node, Operation, PlacementStatus, Project, RebalanceRequest,
        SetPolicyRequest, SetProjectRequest, StoredPolicy, UndrainRequest, UpdateNodeRequest,
        UpdateSettingsRequest, VmSpec, nodes_client::NodesClient, placement_client::PlacementClient,
        vms_client::VmsClient,
    },
    connect::{Repeat, request_id},
    placement_api::{Policy, Settings},
};

macro_rules! call {
    ($self:ident, $request:expr, $method:ident) => {{
        let request = $request;
        $self
            .call(Repeat::Safe, |channel| {
                let request = request.clone();
                async move { PlacementClient::new(channel).$method(request).await }
            })
            .await
    }};
}

impl Client {
    /// Changes what an operator has set for a node.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming
    /// the field, and see [`Error`](crate::Error).
    pub async fn update_node(&self, request: UpdateNodeRequest) -> Result<Node> {
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { NodesClient::new(channel).update_node(request).await }
        })
        .await
    }

    /// Creates `count` VMs of one kind, named after `spec.name`; all of them get a place, or none is created.
    ///
    /// # Errors
    /// As [`Client::create_vm`].
    pub async fn create_vm_group(&self, spec: VmSpec, count: u32) -> Result<Operation> {
        let request = CreateVmGroupRequest { request_id: request_id(), spec: Some(spec), count };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).create_vm_group(request).await }
        })
        .await
    }

    /// Built-in policies and stored ones.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn list_policies(&self) -> Result<Vec<StoredPolicy>> {
        Ok(call!(self, ListPoliciesRequest {}, list_policies)?.policies)
    }

    /// Stores a policy; it is in force for the next decision.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument), and see [`Error`](crate::Error).
    pub async fn set_policy(&self, policy: Policy) -> Result<StoredPolicy> {
        call!(self, SetPolicyRequest { policy: Some(policy) }, set_policy)
    }

    /// Forgets a stored policy.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) while somebody uses it, and see [`Error`](crate::Error).
    pub async fn delete_policy(&self, name: &str) -> Result<()> {
        call!(self, DeletePolicyRequest { name: name.to_owned() }, delete_policy).map(|_| ())
    }

    /// The cluster's settings.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn get_settings(&self) -> Result<Settings> {
        call!(self, GetSettingsRequest {}, get_settings)
    }

    /// Changes the cluster's settings; what is absent stays.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for a policy that is not there, and see [`Error`](crate::Error).
    pub async fn update_settings(&self, request: UpdateSettingsRequest) -> Result<Settings> {
        call!(self, request, update_settings)
    }

    /// Every stored project.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn list_projects(&self) -> Result<Vec<Project>> {
        Ok(call!(self, ListProjectsRequest {}, list_projects)?.projects)
    }

    /// Stores a project, new or known.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for a policy that is not there, and see [`Error`](crate::Error).
    pub async fn set_project(&self, request: SetProjectRequest) -> Result<Project> {
        call!(self, request, set_project)
    }

    /// Forgets a project that has no VMs.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) while it has VMs, and see [`Error`](crate::Error).
    pub async fn delete_project(&self, name: &str) -> Result<()> {
        call!(self, DeleteProjectRequest { name: name.to_owned() }, delete_project).map(|_| ())
    }

    /// Why a VM runs where it does, or nowhere.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), and see [`Error`](crate::Error).
    pub async fn explain_vm(&self, vm: &str) -> Result<ExplainResponse> {
        call!(self, ExplainRequest { vm: vm.to_owned(), spec: None }, explain)
    }

    /// Where a VM would run that does not exist.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument), and see [`Error`](crate::Error).
    pub async fn explain_spec(&self, spec: VmSpec) -> Result<ExplainResponse> {
        call!(self, ExplainRequest { vm: String::new(), spec: Some(spec) }, explain)
    }

    /// What placement has done since the control plane started.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn placement_status(&self) -> Result<PlacementStatus> {
        call!(self, GetPlacementStatusRequest {}, get_placement_status)
    }

    /// Empties a node or a rack; `request_id` is set here.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) where not every VM has another place, and see [`Error`](crate::Error).
    pub async fn drain(&self, request: DrainRequest) -> Result<MovesResponse> {
        call!(self, DrainRequest { request_id: request_id(), ..request }, drain)
    }

    /// Ends a drain; the nodes take VMs again.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), and see [`Error`](crate::Error).
    pub async fn undrain(&self, request: UndrainRequest) -> Result<Vec<Node>> {
        Ok(call!(self, request, undrain)?.nodes)
    }

    /// Proposes moves that balance the cluster, or makes them; `request_id` is set here.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn rebalance(&self, request: RebalanceRequest) -> Result<MovesResponse> {
        call!(self, RebalanceRequest { request_id: request_id(), ..request }, rebalance)
    }

    /// Finds moves that make room, or makes them; `request_id` is set here.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) where there is no way, and see [`Error`](crate::Error).
    pub async fn defragment(&self, request: DefragmentRequest) -> Result<MovesResponse> {
        call!(self, DefragmentRequest { request_id: request_id(), ..request }, defragment)
    }
}
