//! What `limit_req` and `limit_conn` have in common: zones as written, levels of messages.

use weir_ir::contract::Setting;
use weir_ir::{Call, Fault, value};
use weir_syntax::{Diagnostic, Level};

pub(super) const LEVELS: [(&str, Level); 4] =
    [("info", Level::Info), ("notice", Level::Notice), ("warn", Level::Warn), ("error", Level::Error)];

/// The smallest zone: eight pages.
const SMALLEST: u64 = 8 * 4096;

/// A zone as written: its key with variables, and how much it holds.
#[derive(Clone, Debug)]
pub(super) struct ZoneSpec {
    pub name: Box<str>,
    /// Bytes.
    pub size: u64,
    pub key: weir_ir::Template,
    pub key_text: Box<str>,
}

/// Reads `zone=name:size`.
pub(super) fn zone_word(call: &Call<'_>, index: usize) -> Result<(Box<str>, u64), Fault> {
    let whole = call.text(index);
    let invalid = || call.under(call.fail(format!("invalid zone size \"{whole}\"")), index);
    let (name, size) = whole[5..].split_once(':').ok_or_else(invalid)?;
    let size = value::size(size.as_bytes()).ok_or_else(invalid)?;
    if size < SMALLEST {
        return Err(call.under(call.fail(format!("zone \"{whole}\" is too small")), index));
    }
    Ok((name.into(), size))
}

/// Registers a zone that a directive defines.
pub(super) fn define(
    zones: &[ZoneSpec],
    zone: Option<(Box<str>, u64)>,
    key: weir_ir::Template,
    module: &'static str,
    call: &mut Call<'_>,
) -> Result<ZoneSpec, Fault> {
    let Some((name, size)) = zone.filter(|(name, _)| !name.is_empty()) else {
        return Err(without_zone(call));
    };
    call.zone(&name, size, module)?;
    if let Some(known) = zones.iter().find(|z| z.name == name) {
        let directive = String::from_utf8_lossy(call.name()).into_owned();
        let key = &known.key_text;
        return Err(call.fail(format!("{directive} \"{name}\" is already bound to key \"{key}\"")));
    }
    Ok(ZoneSpec { name, size, key, key_text: call.text(0).into() })
}

pub(super) fn without_zone(call: &Call<'_>) -> Fault {
    let directive = String::from_utf8_lossy(call.name()).into_owned();
    call.fail(format!("\"{directive}\" must have \"zone\" parameter"))
}

/// Reads a status of 400 to 599.
pub(super) fn status(setting: &mut Setting<u16>, call: &mut Call<'_>) -> Result<(), Fault> {
    setting.put_with(call, |call| match call.number()? {
        code @ 400..=599 => Ok(code as u16),
        _ => Err(call.under(call.fail("value must be between 400 and 599"), 0)),
    })
}

/// A zone that is limited by but nowhere defined.
pub(super) fn undefined(name: &str) -> Diagnostic {
    let message = format!("zero size shared memory zone \"{name}\"");
    Diagnostic::new(Level::Emerg, message)
}

/// How many bytes a state takes in a zone: what nginx's allocator would give out for it.
pub(super) fn footprint(fixed: usize, key: usize) -> u64 {
    (fixed + key).next_power_of_two() as u64
}
