//! What attributes are set of: a NAS, or a volume.

use crate::{
    client::{Client, encode},
    output::{Output, csv_record::Record},
    stop::Done,
    table::{Table, elastic, text},
};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{
    Fault, FaultKind, HostName, RequestId, Selector, VolumeId,
    api::VolumeView,
    attribute::{AttributeView, Changes},
    messages::Role,
};
use std::str::FromStr;

use super::Context;

/// A name as it was given: of a NAS, of a volume, or of one of them.
#[derive(Clone, Debug)]
pub enum Name {
    /// `NAS:`
    Nas(HostName),
    /// With a part that only a volume's name has.
    Volume(Selector),
    /// A word.
    Either(HostName, Selector),
}

impl FromStr for Name {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.strip_suffix(':') {
            Some(nas) => Ok(Name::Nas(nas.parse()?)),
            None if text.contains([':', '/']) => Ok(Name::Volume(text.parse()?)),
            None => Ok(Name::Either(text.parse()?, text.parse()?)),
        }
    }
}

/// What was meant.
pub enum Target {
    Nas(HostName),
    Volume(Box<VolumeView>),
}

impl Target {
    /// Finds out what is meant.
    pub async fn find(client: &Client, name: Name) -> Result<Self, Fault> {
        match name {
            Name::Nas(nas) => Ok(Target::Nas(nas)),
            Name::Volume(selector) => Ok(Target::Volume(Box::new(client.volume(&selector).await?))),
            Name::Either(host, selector) => {
                let is_nas = client.hosts().await?.iter().any(|h| h.name == host && h.role == Role::Nas);
                match client.volume(&selector).await {
                    Ok(volume) if is_nas => {
                        Err(Fault::invalid(format!("{host} is a NAS, and the name of {}", volume.full_name()))
                            .next(format!("write {host}: for the NAS, or name the volume more fully")))
                    }
                    Ok(volume) => Ok(Target::Volume(Box::new(volume))),
                    Err(_) if is_nas => Ok(Target::Nas(host)),
                    Err(fault) if fault.kind == FaultKind::NotFound => {
                        Err(Fault::not_found(format!("there is no NAS and no volume {host}"))
                            .next("see img-storage hosts and img-storage list"))
                    }
                    Err(fault) => Err(fault),
                }
            }
        }
    }

    /// Its full name.
    pub fn name(&self) -> String {
        match self {
            Target::Nas(nas) => nas.to_string(),
            Target::Volume(volume) => volume.full_name(),
        }
    }

    /// Where its attributes are.
    pub fn path(&self) -> String {
        match self {
            Target::Nas(nas) => format!("/api/nas/{}/attributes", encode(nas.as_str())),
            Target::Volume(volume) => format!("/api/volumes/{}/attributes", encode(&volume.full_name())),
        }
    }

    fn expect(&self) -> Option<VolumeId> {
        match self {
            Target::Nas(_) => None,
            Target::Volume(volume) => Some(volume.id),
        }
    }
}

/// Carries changes out, or says what they would be; then shows what counts.
pub async fn change(mut context: Context, name: Name, changes: Changes, dry_run: bool) -> Done {
    let target = Target::find(&context.client, name).await?;
    let id: RequestId = Client::id();
    let names: Vec<String> = changes.keys().cloned().collect();
    let order = wire::Set { id: Some(id), timeout: None, dry_run, expect: target.expect(), changes, notes: false };
    let outcome = context.client.post(&target.path(), &order).await?;
    if outcome.dry_run {
        return context.would(&outcome);
    }
    if !context.out.format.for_people() {
        return show(&mut context, &outcome.attributes);
    }
    for name in names {
        let Ok(key) = name.parse::<img_storage_model::attribute::AttributeKey>() else { continue };
        let Some(view) = outcome.attributes.iter().find(|view| view.key == key.name()) else { continue };
        let value = view.value.as_deref().unwrap_or("not set");
        context.out.line(&format!("{key} of {} is {value} now ({})", target.name(), view.from))?;
    }
    Ok(())
}

/// Shows attributes.
pub fn show(context: &mut Context, attributes: &[AttributeView]) -> Done {
    match context.out.format {
        Output::Table | Output::Wide => {
            let mut table = Table::new(vec![text("ATTRIBUTE"), elastic("VALUE"), text("FROM")]);
            for view in attributes {
                let row = vec![view.key.clone(), view.value.clone().unwrap_or_default(), view.from.to_string()];
                table.row(row, false);
            }
            context.out.table(&table)
        }
        Output::Csv => {
            let record = |view: &AttributeView| -> Record {
                vec![
                    ("attribute", view.key.clone()),
                    ("value", view.value.clone().unwrap_or_default()),
                    ("number", view.number.map(|n| n.to_string()).unwrap_or_default()),
                    ("from", view.from.to_string()),
                ]
            };
            let records: Vec<Record> = attributes.iter().map(record).collect();
            context.out.value(&(), Some(&records))
        }
        Output::Json | Output::Yaml => context.out.value(&wire::Attributes { attributes: attributes.to_vec() }, None),
    }
}
