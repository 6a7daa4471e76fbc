//! KVM behind typed handles.
