//! One field of a message, parsed; what is wrong with it names the field.

use crate::{HostName, PoolName, Size, VolumeName};
use serde_json::{Map, Value};
use std::{fmt::Display, str::FromStr};

/// The fields of a message.
pub type Fields = Map<String, Value>;

/// The longest value that is kept as text, in bytes.
const LONGEST_TEXT: usize = 1000;

fn wrong(field: &str, why: impl Display) -> String {
    format!("the field {field} is wrong: {why}")
}

/// What a JSON value is, for people.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A field that must be there.
pub fn field<'a>(fields: &'a Fields, name: &str) -> Result<&'a Value, String> {
    fields.get(name).ok_or_else(|| format!("the field {name} is missing"))
}

fn text<'a>(name: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| wrong(name, format!("it is {}, not a string", kind(value))))
}

fn parsed<T>(name: &str, value: &Value) -> Result<T, String>
where
    T: FromStr,
    T::Err: Display,
{
    text(name, value)?.parse().map_err(|why| wrong(name, why))
}

/// `zvol`.
pub fn zvol(fields: &Fields) -> Result<VolumeName, String> {
    parsed("zvol", field(fields, "zvol")?)
}

/// `zpool`.
pub fn zpool(fields: &Fields) -> Result<PoolName, String> {
    parsed("zpool", field(fields, "zpool")?)
}

/// `remotehost`.
pub fn remotehost(fields: &Fields) -> Result<HostName, String> {
    parsed("remotehost", field(fields, "remotehost")?)
}

/// `remotepool`: a pool or null.
pub fn remotepool(fields: &Fields) -> Result<Option<PoolName>, String> {
    match field(fields, "remotepool")? {
        Value::Null => Ok(None),
        value => parsed("remotepool", value).map(Some),
    }
}

/// `sync`: true or false. The original's own commands send 1 and 0.
pub fn sync(fields: &Fields) -> Result<bool, String> {
    let value = field(fields, "sync")?;
    match (value, value.as_u64()) {
        (Value::Bool(sync), _) => Ok(*sync),
        (_, Some(0)) => Ok(false),
        (_, Some(1)) => Ok(true),
        _ => Err(wrong("sync", format!("it is {value}, not true or false"))),
    }
}

/// `size`: GB, as a string or a number. Whole ones, and fractions that come to at least a megabyte.
pub fn size(fields: &Fields) -> Result<Size, String> {
    let number = match field(fields, "size")? {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        other => return Err(wrong("size", format!("it is {}, not a number of GB", kind(other)))),
    };
    gigabytes(&number).map_err(|why| wrong("size", why))
}

/// A size in GB: whole ones, and fractions that come to more than the smallest volume.
///
/// # Errors
/// Why it is none.
pub fn gigabytes(number: &str) -> Result<Size, String> {
    let decimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (whole, part) = number.split_once('.').map_or((number, None), |(whole, part)| (whole, Some(part)));
    if !decimal(whole) || part.is_some_and(|part| !decimal(part)) {
        return Err(format!("{:?} is no number of GB", shortened(number)));
    }
    let part = part.unwrap_or_default().trim_end_matches('0');
    let gigabytes = if part.is_empty() { format!("{whole}G") } else { format!("{whole}.{part}G") };
    let size: Size = gigabytes.parse().map_err(|fault: crate::Fault| fault.message)?;
    // Rounded up to the smallest volume: so little was meant to be something else.
    let tiny = whole.bytes().all(|b| b == b'0') && size.bytes() <= Size::SMALLEST;
    if tiny { Err(format!("{number} GB is too little for a volume")) } else { Ok(size) }
}

/// `initiator`: some name.
pub fn initiator(fields: &Fields) -> Result<String, String> {
    const NONE: &str = "Error when setting up: no initiator specified";
    let value = fields.get("initiator").filter(|v| !v.is_null()).ok_or(NONE)?;
    let name = text("initiator", value)?;
    match name {
        "" => Err(NONE.to_owned()),
        // The longest iSCSI name there is.
        name if name.len() > 223 => Err(wrong("initiator", format!("it is {} bytes long", name.len()))),
        name if name.chars().any(|c| c.is_control() || c.is_whitespace()) => {
            Err(wrong("initiator", format!("{name:?} is no iSCSI name")))
        }
        name => Ok(name.to_owned()),
    }
}

/// An attribute's value: text, a whole number or null.
pub fn attribute(name: &str, value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.len() > LONGEST_TEXT => {
            Err(wrong(name, format!("it is {} bytes long; at most {LONGEST_TEXT} are allowed", text.len())))
        }
        Value::String(text) => Ok(Some(text.clone())),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
        other => Err(wrong(name, format!("it is {}, not a string, a whole number or null", kind(other)))),
    }
}

/// The name of an attribute.
pub fn attribute_name(name: &str) -> Result<String, String> {
    let short: String = shortened(name);
    if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
        return Err(wrong("attrs", format!("{short:?} is no name of an attribute")));
    }
    Ok(name.to_owned())
}

/// `attrs` as names and values.
pub fn values(fields: &Fields) -> Result<Vec<(String, Option<String>)>, String> {
    match field(fields, "attrs")? {
        Value::Object(attrs) => attrs
            .iter()
            .map(|(name, value)| Ok((attribute_name(name)?, attribute(&format!("attrs.{}", shortened(name)), value)?)))
            .collect(),
        other => Err(wrong("attrs", format!("it is {}, not an object of names and values", kind(other)))),
    }
}

/// `attrs` as names.
pub fn names(fields: &Fields) -> Result<Vec<String>, String> {
    match field(fields, "attrs")? {
        Value::Array(attrs) => attrs.iter().map(|name| attribute_name(text("attrs", name)?)).collect(),
        other => Err(wrong("attrs", format!("it is {}, not a list of names", kind(other)))),
    }
}

/// Enough of a text to know it by.
pub fn shortened(text: &str) -> String {
    if text.chars().count() <= 40 { text.to_owned() } else { text.chars().take(37).chain("...".chars()).collect() }
}
