//! Putting another layer under a device while a guest uses it.

use super::{Count, Dm, Layer, Overlay, Table};
use crate::HostError;
use std::time::{Duration, Instant};

/// In which order a swap is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Load the table, then one call that suspends, swaps and resumes: the shortest pause, and no moment at which a killed daemon
    /// leaves the guest waiting. Right where the new layer reads nothing that the old one may still change: a linear one, and a snapshot
    /// whose overlay is empty.
    LoadFirst,
    /// Suspend, load, resume. The one for a layer that reads its overlay when it is loaded, which is every `snapshot-merge`: what
    /// the guest wrote after the load would be lost, without any error.
    SuspendFirst,
}

/// How a swap went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swapped {
    /// How long the guest can have waited: from before the suspend until after the resume. Zero when the layer was there already.
    pub paused: Duration,
}

impl Dm {
    /// Puts `layer` under the device `name`, which has `size` bytes afterwards. Goes on to its end when the caller drops it:
    /// a device is not left suspended.
    ///
    /// # Errors
    /// When it failed and the device does not have the layer. It runs then with the one it had, unless the error says otherwise.
    pub async fn swap(&self, name: &str, size: u64, layer: &Layer, order: Order) -> Result<Swapped, HostError> {
        let (dm, name, layer) = (self.clone(), name.to_owned(), *layer);
        let swap = async move { dm.swap_to_the_end(&name, size, &layer, order).await };
        to_its_end(swap).await
    }

    /// Puts `layer` under the device `name`, in one pause, if as much as `count` says was ever written through it when nothing can be written any
    /// more; nothing where more was: then it goes on as it was. To its end as [`Dm::swap`].
    ///
    /// # Errors
    /// As [`Dm::swap`].
    pub async fn swap_if_still(&self, name: &str, size: u64, layer: &Layer, count: Count) -> Result<Option<Swapped>, HostError> {
        let (dm, name, layer) = (self.clone(), name.to_owned(), *layer);
        let swap = async move { dm.swap_if_still_to_the_end(&name, size, &layer, count).await };
        to_its_end(swap).await
    }

    async fn swap_if_still_to_the_end(
        &self,
        name: &str,
        size: u64,
        layer: &Layer,
        count: Count,
    ) -> Result<Option<Swapped>, HostError> {
        let wanted = Table::Layer { layer: *layer, size };
        if self.ours(name).await?.pending {
            self.clear(name).await?;
        }
        let table = layer.table(super::sectors(name, size)?);
        let began = Instant::now();
        let tried = async {
            self.run(&["suspend", name], super::CHANGE).await?;
            // Everything that was begun has ended. No table is pending before this is known: whoever lets the device go on would put it in.
            let counted = self.spot(name).await?.and_then(|spot| spot.count);
            let same = counted.is_some_and(|now| (now.device, now.writes) == (count.device, count.writes));
            if same {
                self.run(&["load", name, "--table", &table], super::CHANGE).await?;
            }
            self.run(&["resume", name], super::CHANGE).await.map(|_| same)
        };
        let tried: Result<bool, HostError> = tried.await;
        let paused = began.elapsed();
        let why = match tried {
            Ok(same) => return Ok(same.then_some(Swapped { paused })),
            Err(why) => why,
        };
        // Nothing is written while it is suspended: what was loaded may be put in.
        if self.ours(name).await.is_ok_and(|state| state.suspended) {
            self.resume(name).await?;
        }
        match self.table(name).await? {
            Some(found) if found == wanted => Ok(Some(Swapped { paused })),
            found => Err(HostError(format!("the device {name} could not be moved and goes on with {found:?}: {why}"))),
        }
    }

    async fn swap_to_the_end(&self, name: &str, size: u64, layer: &Layer, order: Order) -> Result<Swapped, HostError> {
        if order == Order::LoadFirst && matches!(layer, Layer::SnapshotMerge { .. }) {
            return Err(HostError(format!(
                "the table of {name} for merging must not be loaded before it is suspended: it would miss writes"
            )));
        }
        let wanted = Table::Layer { layer: *layer, size };
        let state = self.ours(name).await?;
        if state.pending {
            // From an attempt that was killed; what it would do is not known.
            self.clear(name).await?;
        }
        let merges = matches!(layer, Layer::SnapshotMerge { .. });
        // The kernel begins such a merge again only with a table that is loaded anew.
        let stopped = merges && matches!(self.overlay(name).await, Ok(Some(Overlay::MergeFailed)));
        if !stopped && state.live && self.live_table(name).await? == wanted {
            if state.suspended {
                self.resume(name).await?;
            }
            return Ok(Swapped { paused: Duration::ZERO });
        }
        let table = layer.table(super::sectors(name, size)?);
        let (suspend, load) = (["suspend", name], ["load", name, "--table", &table]);
        let resume = ["resume", name];
        // Nothing is looked at in between: the guest waits for each program that is started.
        let mut began = Instant::now();
        let (first, second): (&[&str], &[&str]) = match order {
            Order::LoadFirst => (&load, &[]),
            Order::SuspendFirst => (&suspend, &load),
        };
        let mut tried = self.run(first, super::CHANGE).await.map(drop);
        if order == Order::LoadFirst {
            began = Instant::now();
        }
        for step in [second, &resume] {
            if tried.is_ok() && !step.is_empty() {
                tried = self.run(step, super::CHANGE).await.map(drop);
            }
        }
        let paused = began.elapsed();
        let Err(why) = tried else { return Ok(Swapped { paused }) };
        // Whatever happened, the device goes on; with the old table, if the new one did not come into use.
        let after = self.ours(name).await;
        if !after.as_ref().is_ok_and(|state| !state.suspended && !state.pending) {
            self.back(name, &why).await?;
        }
        match self.table(name).await? {
            Some(found) if found == wanted => Ok(Swapped { paused }),
            found => Err(HostError(format!("the device {name} could not be given {wanted:?} and goes on with {found:?}: {why}"))),
        }
    }

    /// Drops what is pending and lets the device go on.
    async fn back(&self, name: &str, why: &HostError) -> Result<(), HostError> {
        let cleared = self.clear(name).await;
        match self.resume(name).await {
            Ok(()) => Ok(()),
            Err(error) => Err(HostError(format!(
                "THE DEVICE {name} IS SUSPENDED and everything on it waits: {error}{}; before that: {why}; when its disks answer, \
                 `dmsetup clear {name}` and `dmsetup resume {name}` let it go on",
                cleared.err().map_or_else(String::new, |error| format!("; {error}")),
            ))),
        }
    }
}

/// Does a swap to its end, whoever drops it meanwhile.
async fn to_its_end<T: Send + 'static>(
    swap: impl Future<Output = Result<T, HostError>> + Send + 'static,
) -> Result<T, HostError> {
    tokio::spawn(swap).await.map_err(|why| HostError(format!("a swap of tables was cut off: {why}; look at the device again")))?
}
