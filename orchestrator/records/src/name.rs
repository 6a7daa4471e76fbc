//! Names in use.

use drover_cluster_state::{NameKind, NameRecord};
use drover_wire::store::v1 as stored;

use crate::{
    RecordError, StoredForm,
    fields::{invalid, name, required},
};

impl StoredForm for NameRecord {
    type Message = stored::NameEntry;

    fn to_message(&self) -> stored::NameEntry {
        let kind = match self.kind {
            NameKind::Vm => stored::NameKind::Vm,
            NameKind::Volume => stored::NameKind::Volume,
            NameKind::Node => stored::NameKind::Node,
        };
        stored::NameEntry {
            kind: kind.into(),
            name: self.name.to_string(),
            holder: Some(self.holder.to_message()),
        }
    }

    fn from_message(message: stored::NameEntry) -> Result<Self, RecordError> {
        let kind = match message.kind() {
            stored::NameKind::Vm => NameKind::Vm,
            stored::NameKind::Volume => NameKind::Volume,
            stored::NameKind::Node => NameKind::Node,
            stored::NameKind::Unspecified => return Err(invalid("name.kind", message.kind)),
        };
        Ok(Self {
            kind,
            name: name("name.name", &message.name)?,
            holder: StoredForm::from_message(required("name.holder", message.holder)?)?,
        })
    }
}
