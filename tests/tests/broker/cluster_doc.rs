//! `docs/cluster.md`, followed word by word: a directory stands for each machine, and the commands run as they are written there,
//! with the paths led into that directory. Only what would change this machine stands aside: `apt-get`, `systemctl`, `scp`, owners.

use img_storage_tests::{broker::Broker, processes, service};
use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

const PAGE: &str = include_str!("../../../docs/cluster.md");
const HOSTS: [&str; 3] = ["front-0", "nas-0", "node-0"];
/// For one block of commands.
const BLOCK: Duration = Duration::from_secs(180);

/// The commands of the page, in their order, with the machine they are for.
fn blocks() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(host) = line.strip_prefix("```sh ") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((host, block.join("\n")));
        }
    }
    blocks
}

/// Commands that stand aside for those that would change this machine.
const STAND_INS: [(&str, &str); 4] = [
    ("apt-get", "echo \"not here: apt-get $*\" >&2"),
    // scp -r FROM HOST:TO
    ("scp", "cp -r \"$2\" \"$SITE/${3%%:*}${3#*:}\""),
    // There is no other user here.
    (
        "install",
        "words=\nwhile [ $# -gt 0 ]; do\ncase \"$1\" in -o|-g) shift ;; *) words=\"$words $1\" ;; esac\nshift\ndone\nexec /usr/bin/install $words",
    ),
    (
        "systemctl",
        "case \"$*\" in
'enable --now img-storage@'*)
  role=${3#img-storage@}
  setsid img-storage \"$role\" > \"$SITE/$HOST/log\" 2>&1 < /dev/null &
  echo $! > \"$SITE/$HOST/pid\"
  until grep -q 'ready:' \"$SITE/$HOST/log\"; do
    kill -0 $! || { cat \"$SITE/$HOST/log\" >&2; exit 1; }
    sleep 0.05
  done ;;
*) echo \"systemctl $* is not understood\" >&2; exit 1 ;;
esac",
    ),
];

/// The machines, and whatever was started on them.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("c").tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(service::program().unwrap(), bin.join("img-storage")).unwrap();
        let site = Site { dir };
        STAND_INS.iter().for_each(|(name, text)| site.script(name, text));
        for program in ["rabbitmqctl", "rabbitmq-plugins"] {
            site.script(program, &format!("exec {} \"$@\"", Broker::scripts().join(program).display()));
        }
        for host in HOSTS {
            // What every Debian has.
            for path in ["etc/rabbitmq", "root", "srv"] {
                fs::create_dir_all(site.at(host).join(path)).unwrap();
            }
        }
        site
    }

    fn at(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.dir.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The text with its paths in the host's directory, and with what is different here: the broker's port, the data address.
    fn here(&self, host: &str, text: &str, broker: &Broker) -> String {
        let mut led = String::new();
        let mut before = '\n';
        for (at, c) in text.char_indices() {
            let path = ["/etc/", "/root/", "/srv/"].iter().any(|p| text[at..].starts_with(p));
            if path && matches!(before, ' ' | '\n' | '"' | '=') {
                led.push_str(&self.at(host).display().to_string());
            }
            led.push(c);
            before = c;
        }
        let port = broker.port();
        led.replace("hosts = [\"front-0\"]", &format!("hosts = [\"localhost:{port}\"]"))
            .replace("hosts = [\"localhost\"]", &format!("hosts = [\"localhost:{port}\"]"))
            .replace("10.2.0.10", "127.0.0.2")
    }

    async fn run(&self, host: &str, text: &str, broker: &Broker) -> String {
        let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-eu", "-c", &self.here(host, text, broker)]).env_clear().envs(broker.environment());
        shell.env("PATH", path).env("HOST", host).env("SITE", self.dir.path());
        shell.env("IMG_STORAGE_DIR", self.at(host).join("var")).env("IMG_STORAGE_CONFIG", self.at(host).join("etc/img-storage"));
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = timeout(BLOCK, shell.output()).await.unwrap_or_else(|_| panic!("on {host}, this does not end:\n{text}"));
        let output = output.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("--- {host}\n{text}\n{out}{err}");
        assert!(output.status.success(), "on {host}, {}:\n{text}\n{out}{err}\n{}", output.status, self.logs());
        out.into_owned()
    }

    fn logs(&self) -> String {
        let log = |host: &&str| fs::read_to_string(self.at(host).join("log")).map(|text| format!("=== {host}\n{text}"));
        HOSTS.iter().filter_map(|host| log(host).ok()).collect()
    }

    fn pids(&self) -> Vec<u32> {
        let pid = |host: &&str| fs::read_to_string(self.at(host).join("pid")).ok()?.trim().parse().ok();
        HOSTS.iter().filter_map(pid).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.pids().into_iter().for_each(processes::kill_and_wait);
        for daemon in processes::storage_daemons(self.dir.path()).unwrap_or_default() {
            processes::kill_and_wait(daemon.pid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_leads_from_bare_machines_to_a_mapped_volume() {
    let site = Site::new();
    let mut broker = Broker::bare().unwrap();
    let blocks = blocks();
    assert!(blocks.len() >= 9 && blocks.iter().all(|(host, _)| HOSTS.contains(host)), "{blocks:#?}");
    let mut said = String::new();
    for (host, block) in &blocks {
        // The broker is this test's own: it starts where the page restarts it.
        let (first, rest) = match block.split_once("systemctl restart rabbitmq-server\n") {
            Some((first, rest)) => (first.to_owned(), Some(rest)),
            None => (block.clone(), None),
        };
        said = site.run(host, &first, &broker).await;
        if let Some(rest) = rest {
            let conf = fs::read_to_string(site.at(host).join("etc/rabbitmq/rabbitmq.conf")).unwrap();
            broker.begin(&conf).await.unwrap();
            said = site.run(host, rest, &broker).await;
        }
    }
    // The last block is the volume's life.
    for word in ["nas-0", "node-0", "nbd+unix:///", "local", "upload-speed of nas-0:tank/vol1 is 100M now (volume)"] {
        assert!(said.contains(word), "{word} is missing:\n{said}");
    }
    let users = broker.ctl(&["list_users", "--no-table-headers"]).await.unwrap();
    assert!(HOSTS.iter().skip(1).all(|host| users.contains(host)) && users.contains("frontend"), "{users}");

    // What a host may not do, the broker refuses: here, to take another one's name.
    let words = ["list_permissions", "-p", "img-storage", "--no-table-headers"];
    let rights = broker.ctl(&words).await.unwrap();
    let of_node = rights.lines().find(|line| line.starts_with("node-0")).unwrap_or_default();
    assert!(of_node.contains(r"img-storage\.name\.node-0") && !of_node.contains(".*\t.*\t.*"), "{rights}");
    let pids = site.pids();
    assert_eq!(pids.len(), 3);
    // Again, for hosts that are added: nothing is lost by it.
    let again = site.run("front-0", "img-storage broker-setup --run node-0 node-1\nimg-storage hosts -o wide", &broker).await;
    assert!(again.contains("node-0 is there already") && again.contains("node-1 is made"), "{again}");
    assert!(again.contains("127.0.0.2"), "the data address is shown:\n{again}");
    pids.into_iter().for_each(processes::terminate);
}
