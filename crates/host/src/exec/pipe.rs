//! Two programs with a pipe between them, and us in it: bytes are counted, nothing is kept.

use super::{CommandLine, ENVIRONMENT, ExecError, Group, STDOUT_LIMIT, each_piece, keep_tail};
use std::{
    ffi::{OsStr, OsString},
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

/// How much is moved at a time.
const PIECE: usize = 256 << 10;
/// How long the last words of a program that has ended are waited for: something it left running may hold its standard error.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// As [`LAST_WORDS`], for its answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// What it is told.
    pub args: Vec<OsString>,
}

impl Program {
    /// A program with these arguments.
    pub fn new<A: AsRef<OsStr>>(path: impl Into<PathBuf>, args: impl IntoIterator<Item = A>) -> Self {
        Self { path: path.into(), args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect() }
    }

    fn line(&self) -> CommandLine {
        CommandLine::new(&self.path, &self.args)
    }
}

/// What a stream through here came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piped {
    /// Bytes that passed.
    pub bytes: u64,
    /// What the program that received printed; the beginning of it, where it is longer than [`STDOUT_LIMIT`].
    pub printed: Vec<u8>,
}

/// Runs `from` and `to`, passing what the first prints to the second; `moved` is told how many bytes have passed so far.
///
/// There is no deadline for the whole, which may be hours of work. `stall` is how long nothing may move, and how long the
/// programs may take to end after the last byte. Both are killed when it has passed, and when the caller drops the future.
///
/// # Errors
/// When either did not succeed: what both said. The one that received comes first, because the other often only finds its pipe closed.
pub async fn pipe(from: &Program, to: &Program, stall: Duration, mut moved: impl FnMut(u64)) -> Result<Piped, ExecError> {
    let (mut reader, mut writer) = (Running::start(from, false)?, Running::start(to, true)?);
    let mut buffer = vec![0; PIECE];
    let mut total = 0;
    while let (Some(source), Some(sink)) = (&mut reader.child.stdout, &mut writer.child.stdin) {
        let step = async {
            let n = source.read(&mut buffer).await?;
            // A refused write means that the other program has ended, and it will say why.
            Ok::<_, io::Error>(if n > 0 && sink.write_all(&buffer[..n]).await.is_ok() { n } else { 0 })
        };
        match timeout(stall, step).await {
            Err(_) => {
                return Err(ExecError::Deadline {
                    command: from.line(),
                    after: stall,
                    stderr: format!("{}\n{}", reader.said(), writer.said()),
                });
            }
            Ok(Err(source)) => return Err(ExecError::Lost { command: from.line(), source }),
            Ok(Ok(0)) => break,
            Ok(Ok(n)) => {
                total += n as u64;
                moved(total);
            }
        }
    }
    // The one sees the end of its input, the other that nobody listens.
    drop((reader.child.stdout.take(), writer.child.stdin.take()));
    let received = writer.end(to, stall).await;
    let sent = reader.end(from, stall).await;
    match (received, sent) {
        (Ok(printed), Ok(_)) => Ok(Piped { bytes: total, printed }),
        (Err(ExecError::Failed { command, status, stderr }), Err(other)) => {
            Err(ExecError::Failed { command, status, stderr: format!("{other}\n{stderr}") })
        }
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

/// What a program says, kept while it runs.
struct Words {
    kept: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
}

impl Words {
    fn of(pipe: Option<impl AsyncRead + Unpin + Send + 'static>, keep: fn(&mut Vec<u8>, &[u8])) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&kept);
        let listening = tokio::spawn(async move {
            // What cannot be read has nothing to say.
            let _ = each_piece(pipe, |piece| keep(&mut into.lock().unwrap_or_else(PoisonError::into_inner), piece)).await;
        });
        Self { kept, listening }
    }

    fn kept(&self) -> Vec<u8> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn keep_head(kept: &mut Vec<u8>, piece: &[u8]) {
    kept.extend_from_slice(&piece[..piece.len().min(STDOUT_LIMIT - kept.len())]);
}

impl Drop for Words {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// A program that runs.
struct Running {
    child: Child,
    group: Group,
    said: Words,
    printed: Option<Words>,
}

impl Running {
    fn start(program: &Program, receives: bool) -> Result<Self, ExecError> {
        let stdin = if receives { Stdio::piped() } else { Stdio::null() };
        let mut command = Command::new(&program.path);
        command.args(&program.args).envs(ENVIRONMENT).process_group(0).kill_on_drop(true);
        let spawned = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| ExecError::Start { program: program.path.clone(), source })?;
        let group = Group::of(&child);
        let said = Words::of(child.stderr.take(), keep_tail);
        let printed = receives.then(|| Words::of(child.stdout.take(), keep_head));
        Ok(Self { child, group, said, printed })
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.kept()).trim_end().to_owned()
    }

    async fn end(mut self, program: &Program, stall: Duration) -> Result<Vec<u8>, ExecError> {
        let command = program.line();
        let status: ExitStatus = match timeout(stall, self.child.wait()).await {
            Err(_) => return Err(ExecError::Deadline { command, after: stall, stderr: self.said() }),
            Ok(Err(source)) => return Err(ExecError::Lost { command, source }),
            Ok(Ok(status)) => status,
        };
        self.group.ended();
        if !status.success() {
            let _ = timeout(LAST_WORDS, &mut self.said.listening).await;
            return Err(ExecError::Failed { command, status, stderr: self.said() });
        }
        let Some(printed) = &mut self.printed else { return Ok(Vec::new()) };
        let _ = timeout(ANSWER, &mut printed.listening).await;
        Ok(printed.kept())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    fn sh(script: &str) -> Program {
        Program::new("sh", ["-c", script])
    }

    #[tokio::test]
    async fn every_byte_arrives_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let mut last = 0;
        let to = sh(&format!("cat > {}", file.display()));
        let piped = pipe(&sh("head -c 3000000 /dev/urandom"), &to, LONG, |n| last = n).await.unwrap();
        assert_eq!((piped.bytes, last, std::fs::metadata(&file).unwrap().len()), (3_000_000, 3_000_000, 3_000_000));
    }

    #[tokio::test]
    async fn either_failure_is_told_with_what_both_said() {
        let error = pipe(&sh("echo x; echo sender >&2; exit 3"), &sh("cat; echo receiver >&2; exit 4"), LONG, |_| {}).await;
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("status: 3") && text.contains("sender") && text.contains("status: 4") && text.contains("receiver"),
            "{text}"
        );
        let text = pipe(&sh("echo x; exit 3"), &sh("cat"), LONG, |_| {}).await.unwrap_err().to_string();
        assert!(text.contains("status: 3"), "{text}");
        // The sender has not ended by itself when the receiver has.
        let text = pipe(&sh("cat /dev/zero"), &sh("exit 5"), LONG, |_| {}).await.unwrap_err().to_string();
        assert!(text.contains("status: 5"), "{text}");
        assert!(matches!(
            pipe(&sh("true"), &Program::new("no-such-program", [""]), LONG, |_| {}).await,
            Err(ExecError::Start { .. })
        ));
    }

    #[tokio::test]
    async fn a_stream_that_stands_still_is_ended_and_one_that_moves_is_not() {
        let short = Duration::from_millis(400);
        let began = Instant::now();
        let error = pipe(&sh("echo x; sleep 30"), &sh("cat"), short, |_| {}).await.unwrap_err();
        assert!(matches!(error, ExecError::Deadline { .. }), "{error}");
        let error = pipe(&sh("echo x"), &sh("cat; sleep 30"), short, |_| {}).await.unwrap_err();
        assert!(matches!(error, ExecError::Deadline { .. }), "{error}");
        // In all it takes longer than it may stand still; a machine with much to do has some seconds for each step.
        let slow = sh("for i in 1 2 3 4 5 6 7 8 9; do echo x; sleep 0.5; done");
        assert_eq!(pipe(&slow, &sh("cat"), Duration::from_secs(4), |_| {}).await.unwrap().bytes, 18);
        assert!(began.elapsed() < Duration::from_secs(28));
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_does_not_hold_the_stream() {
        let began = Instant::now();
        // As an ssh that leaves a master behind, which keeps its standard error.
        let master = "(setsid sleep 25 >/dev/null </dev/null &)";
        let piped = pipe(&sh(&format!("echo x; {master}")), &sh("cat"), LONG, |_| {}).await.unwrap();
        assert_eq!(piped, Piped { bytes: 2, printed: b"x\n".to_vec() });
        let piped = pipe(&sh("echo x"), &sh("cat; (setsid sleep 25 </dev/null &); echo done"), LONG, |_| {}).await.unwrap();
        assert_eq!(piped.printed, b"x\ndone\n");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
