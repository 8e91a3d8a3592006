//! The verbs of the kernel plane by hand, one a call, on a host that may be spoilt: for looking into what the tools do.
//!
//! `verbs zfs volumes tank`, `verbs dm swap NAME SIZE after snapshot-merge 230:16 230:32 32`: what it prints is what was seen, and how
//! long it took. Everything it makes has the marks of a trial and not the daemons'.

use img_storage_host::{
    HostError,
    kernel::{
        block::{self, Number},
        dm::{Dm, Layer, Order},
        iscsi::{Iscsi, Wanted},
        lio::{self, Chap, Export, Lio},
        stream::{Peer, Side, Ssh, Streams, serve},
        zfs::{NewVolume, VOLUME, Zfs},
    },
};
use img_storage_model::{Dataset, Epoch, Guid, Snapshot, VolumeId, stream::Source};
use std::{error::Error, path::PathBuf, str::FromStr, time::Duration, time::Instant};

const IQN: &str = "iqn.2024-01.test.trial:";
const PREFIX: &str = "trial-";
const TAG: &str = "img-storage";
const LONG: Duration = Duration::from_secs(30);

type Said = Result<(), Box<dyn Error>>;

#[tokio::main]
async fn main() -> Said {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let began = Instant::now();
    let done = match words[..] {
        ["zfs", ref rest @ ..] => zfs(rest).await,
        ["lio", ref rest @ ..] => target(rest).await,
        ["iscsi", ref rest @ ..] => initiator(rest).await,
        ["dm", ref rest @ ..] => mapper(rest).await,
        ["block", ref rest @ ..] => device(rest).await,
        ["stream", ref rest @ ..] => stream(rest).await,
        _ => Err("zfs, lio, iscsi, dm, block or stream?".into()),
    };
    println!("# {:.3} s", began.elapsed().as_secs_f64());
    done
}

fn show(what: &impl std::fmt::Debug) -> Said {
    println!("{what:#?}");
    Ok(())
}

fn parse<T: FromStr<Err: Error + 'static>>(text: &str) -> Result<T, Box<dyn Error>> {
    Ok(text.parse()?)
}

async fn zfs(words: &[&str]) -> Said {
    let zfs = Zfs::new(["img-storage:epoch"]);
    match *words {
        ["pools"] => show(&zfs.pools().await?),
        ["room", of] => show(&zfs.room(&parse(of)?).await?),
        ["volumes", below] => show(&zfs.volumes(&parse(below)?).await?),
        ["volume", name] => show(&zfs.volume(&parse(name)?).await?),
        ["snapshots", of] => show(&zfs.snapshots(&parse(of)?).await?),
        ["holds", of] => show(&zfs.holds(&parse(of)?).await?),
        ["written", since] => show(&zfs.written_since(&parse(since)?).await?),
        ["allowed", on] => show(&zfs.allowed(&parse(on)?).await?),
        ["create", name, size, volume] => {
            let marks = vec![("img-storage:epoch".to_owned(), "1".to_owned())];
            let new = NewVolume { size: parse(size)?, sparse: true, block_size: None, volume: volume.to_owned(), marks };
            show(&zfs.create(&parse(name)?, &new).await?)
        }
        ["wait", name] => show(&zfs.wait_for_device(&parse(name)?).await?),
        ["snapshot", name] => show(&zfs.snapshot(&parse(name)?).await?),
        ["hold", name] => show(&zfs.hold(&parse(name)?, TAG).await?),
        ["release", name] => show(&zfs.release(&parse(name)?, TAG).await?),
        ["destroy", name, volume] => show(&zfs.destroy_volume(&parse(name)?, volume, TAG).await?),
        ["destroy-snapshot", name, volume] => show(&zfs.destroy_snapshot(&parse(name)?, volume, TAG).await?),
        ["set", name, property, value] => show(&zfs.set(&parse(name)?, property, value).await?),
        ["unset", name, property] => show(&zfs.unset(&parse(name)?, property).await?),
        ["grow", name, size] => show(&zfs.grow(&parse(name)?, parse(size)?).await?),
        ["rename", from, to, guid] => show(&zfs.rename(&parse(from)?, &parse(to)?, Guid(parse(guid)?)).await?),
        ["rollback", to, guid] => show(&zfs.rollback(&parse(to)?, Guid(parse(guid)?)).await?),
        ["discard", name] => show(&zfs.discard_partial(&parse(name)?).await?),
        ["mark"] => show(&VOLUME),
        _ => Err("which verb of zfs?".into()),
    }
}

fn trial(name: &str) -> (String, String) {
    (format!("{IQN}{name}"), format!("{PREFIX}{name}"))
}

async fn target(words: &[&str]) -> Said {
    let lio = Lio::new(lio::ROOT, IQN, PREFIX);
    match *words {
        ["ready"] => show(&lio.ready().await?),
        ["list"] => show(&lio.list().await?),
        ["export", name, device, serial, portal, initiator, user, password] => {
            let (target, backstore) = trial(name);
            let chap = Chap { user: user.to_owned(), password: password.to_owned() };
            let export = Export {
                backstore,
                device: device.into(),
                serial: serial.to_owned(),
                target,
                portals: vec![parse(portal)?],
                initiator: initiator.to_owned(),
                chap,
            };
            show(&lio.export(&export).await?)
        }
        // As many exports as one likes, of zvols made before: PARENT/vN for N from 1.
        ["many", parent, count, portal, initiator] => {
            for n in 1..=parse::<u32>(count)? {
                let (target, backstore) = trial(&format!("many{n}"));
                let chap = Chap { user: "user".to_owned(), password: "password-of-14".to_owned() };
                let (device, serial) = (PathBuf::from(format!("/dev/zvol/{parent}/v{n}")), format!("serial{n}"));
                let (portals, initiator) = (vec![parse(portal)?], initiator.to_owned());
                let export = Export { backstore, device, serial, target, portals, initiator, chap };
                let began = Instant::now();
                lio.export(&export).await?;
                println!("{n}\t{:.4}", began.elapsed().as_secs_f64());
            }
            Ok(())
        }
        ["none", count] => {
            for n in 1..=parse::<u32>(count)? {
                let (target, backstore) = trial(&format!("many{n}"));
                let began = Instant::now();
                lio.withdraw(&target, &backstore).await?;
                println!("{n}\t{:.4}", began.elapsed().as_secs_f64());
            }
            Ok(())
        }
        ["saved"] => show(&lio.saved_by_targetcli()?),
        ["lock-out", name] => show(&lio.lock_out(&trial(name).0).await?),
        ["withdraw", name] => {
            let (target, backstore) = trial(name);
            show(&lio.withdraw(&target, &backstore).await?)
        }
        _ => Err("which verb of lio?".into()),
    }
}

async fn initiator(words: &[&str]) -> Said {
    let iscsi = Iscsi::new(IQN);
    match *words {
        ["sessions"] => show(&iscsi.sessions().await?),
        ["records"] => show(&iscsi.records()?),
        ["login", name, portal, user, password, deadline] => {
            let wanted = Wanted {
                target: trial(name).0,
                portal: parse(portal)?,
                chap: Chap { user: user.to_owned(), password: password.to_owned() },
                replacement_timeout: Duration::from_secs(8),
                noop: (Duration::from_secs(2), Duration::from_secs(2)),
            };
            show(&iscsi.login(&wanted, Duration::from_secs(parse(deadline)?)).await?)?;
            show(&iscsi.disk(&trial(name).0, 0, LONG).await?)
        }
        ["disk", name] => show(&iscsi.disk(&trial(name).0, 0, LONG).await?),
        ["rescan", name, size] => {
            let disk = iscsi.disk(&trial(name).0, 0, LONG).await?;
            show(&iscsi.rescan(&disk, parse(size)?, LONG).await?)
        }
        ["logout", name, portal] => show(&iscsi.logout(&trial(name).0, parse(portal)?).await?),
        _ => Err("which verb of iscsi?".into()),
    }
}

fn layer(words: &[&str]) -> Result<Layer, Box<dyn Error>> {
    Ok(match *words {
        ["linear", device] => Layer::Linear { device: parse(device)? },
        ["snapshot", origin, overlay, chunk] => {
            Layer::Snapshot { origin: parse(origin)?, overlay: parse(overlay)?, chunk: parse(chunk)? }
        }
        ["snapshot-merge", origin, overlay, chunk] => {
            Layer::SnapshotMerge { origin: parse(origin)?, overlay: parse(overlay)?, chunk: parse(chunk)? }
        }
        _ => return Err("which layer?".into()),
    })
}

async fn mapper(words: &[&str]) -> Said {
    let dm = Dm::new(PREFIX);
    match *words {
        ["list"] => show(&dm.list().await?),
        ["table", name] => show(&dm.table(name).await?),
        ["overlay", name] => show(&dm.overlay(name).await?),
        ["create", name, size, ref rest @ ..] => {
            show(&dm.create(name, &format!("{PREFIX}{name}"), parse(size)?, &layer(rest)?).await?)
        }
        ["swap", name, size, order, ref rest @ ..] => {
            let order = if order == "first" { Order::LoadFirst } else { Order::SuspendFirst };
            show(&dm.swap(name, parse(size)?, &layer(rest)?, order).await?)
        }
        ["load", name, size, ref rest @ ..] => show(&dm.load(name, parse(size)?, &layer(rest)?).await?),
        ["merged", name] => loop {
            match dm.overlay(name).await? {
                Some(overlay) if overlay.is_merged() => return show(&overlay),
                Some(block) => println!("{block:?}"),
                None => return Err("it has no overlay".into()),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        },
        ["suspend", name] => show(&dm.suspend(name).await?),
        ["resume", name] => show(&dm.resume(name).await?),
        ["clear", name] => show(&dm.clear(name).await?),
        ["remove", name] => show(&dm.remove(name).await?),
        _ => Err("which verb of dm?".into()),
    }
}

async fn device(words: &[&str]) -> Said {
    match *words {
        ["look", path] => match block::number(path.as_ref())? {
            Some(number) => show(&block::look(number)?),
            None => Err("nothing is there".into()),
        },
        ["holders", path] => match block::number(path.as_ref())? {
            Some(number) => show(&block::holders(number).await?),
            None => show(&block::holders(path.parse::<Number>()?).await?),
        },
        ["flush", path] => show(&block::flush(path.into(), LONG).await?),
        _ => Err("which verb of block?".into()),
    }
}

/// `within` is the dataset of this side; keys and sockets are in `/root/trial`, the node is `PEER:PORT`.
async fn stream(words: &[&str]) -> Said {
    let [within, ref words @ ..] = *words else { return Err("within which dataset?".into()) };
    let side = Side::new(Zfs::new([]), vec![parse(within)?]);
    if let ["serve", line] = *words {
        let done = serve(&side, line).await?;
        return show(&done);
    }
    let [peer, verb, volume, ref words @ ..] = *words else { return Err("whom, what, and of which volume?".into()) };
    let (host, port) = peer.split_once(':').ok_or("HOST:PORT?")?;
    let peer = Peer { host: host.to_owned(), port: parse(port)? };
    let ssh = Ssh {
        user: "img-storage".to_owned(),
        key: "/root/trial/key".into(),
        known_hosts: "/root/trial/known_hosts".into(),
        sockets: "/root/trial".into(),
    };
    let streams = Streams::new(side, ssh);
    let volume = VolumeId(volume.parse().map_err(|error| HostError(format!("{error}")))?);
    let mut last = 0;
    let progress = |n| {
        if n - last > 4 << 20 {
            println!("{n} bytes");
            last = n;
        }
    };
    let from = |text: &str| if text == "-" { Ok(None) } else { parse::<Snapshot>(text).map(Some) };
    match (verb, words) {
        ("holdings", [of]) => show(&streams.holdings(&peer, volume, &parse::<Dataset>(of)?).await?),
        ("discard", [of]) => show(&streams.discard(&peer, volume, &parse::<Dataset>(of)?).await?),
        ("estimate-pull", [to]) => show(&streams.estimate_pull(&peer, volume, &Source::whole(parse(to)?)).await?),
        ("estimate", [to]) => show(&streams.local.estimate(&Source::whole(parse(to)?)).await?),
        ("push", [epoch, old, to, into]) => {
            let (from, to) = (from(old)?, parse::<Snapshot>(to)?);
            let token = streams.holdings(&peer, volume, &parse(into)?).await?.token;
            let what = (from.as_ref(), &to, token);
            show(&streams.push(&peer, (volume, Epoch(parse(epoch)?)), what, &parse(into)?, progress).await?)
        }
        ("pull", [old, to, into]) => {
            let (from, to) = (from(old)?, parse::<Snapshot>(to)?);
            let token = streams.local.holdings(&parse(into)?).await?.token;
            show(&streams.pull(&peer, volume, (from.as_ref(), &to, token), &parse(into)?, progress).await?)
        }
        _ => Err("which verb of stream?".into()),
    }
}
