//! How much a device may do in a second.

use drover_machine::devices::limits::{Limit, Limits, Rate};
use drover_wire::vm::v1 as wire;

use super::fields::{InvalidField, invalid};

/// The limits that a message sets; none where there is no message.
pub(super) fn limits(field: &str, message: Option<wire::Limits>) -> Result<Limits, InvalidField> {
    let wire::Limits { total, inbound, outbound } = message.unwrap_or_default();
    Ok(Limits {
        total: limit(&format!("{field}.total"), total)?,
        inbound: limit(&format!("{field}.inbound"), inbound)?,
        outbound: limit(&format!("{field}.outbound"), outbound)?,
    })
}

fn limit(field: &str, message: Option<wire::Limit>) -> Result<Limit, InvalidField> {
    let wire::Limit { requests, bytes } = message.unwrap_or_default();
    Ok(Limit {
        requests: rate(&format!("{field}.requests"), requests)?,
        bytes: rate(&format!("{field}.bytes"), bytes)?,
    })
}

fn rate(field: &str, message: Option<wire::Rate>) -> Result<Option<Rate>, InvalidField> {
    let Some(wire::Rate { per_second, burst }) = message else { return Ok(None) };
    let rate = Rate::new(per_second, (burst > 0).then_some(burst));
    rate.map(Some).map_err(|_| invalid(field, format_args!("{per_second}, burst {burst}"), "1 to 2^50 each"))
}
