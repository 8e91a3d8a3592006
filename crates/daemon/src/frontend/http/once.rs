//! A request that comes twice is carried out once: the second gets what the first got, or waits with it.
//!
//! The NASes' ledgers hold the answers that must outlive this process; here are those of orders that this front end carries
//! out itself (imports, exports), and the work goes on when the client that asked goes away.

use super::wire::Outcome;
use img_storage_model::{Fault, FaultKind, RequestId};
use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// How many requests are remembered.
const KEPT: usize = 1024;

type Result = std::result::Result<Outcome, Fault>;

#[derive(Default)]
struct Known {
    by_id: HashMap<RequestId, (String, watch::Receiver<Option<Result>>)>,
    order: VecDeque<RequestId>,
}

/// The requests of late.
#[derive(Clone, Default)]
pub struct Once(Arc<Mutex<Known>>);

impl Once {
    /// Does `work`, which `what` describes, unless `id` is known.
    ///
    /// # Errors
    /// What the work says; [`FaultKind::Invalid`] when the id was used for something else.
    pub async fn run(&self, id: RequestId, what: String, work: impl Future<Output = Result> + Send + 'static) -> Result {
        let mut answer = match self.join(id, what)? {
            Ok(running) => running,
            Err(sender) => {
                let known = self.clone();
                let answer = sender.subscribe();
                tokio::spawn(async move {
                    let result = work.await;
                    if let Err(fault) = &result
                        && matches!(fault.kind, FaultKind::Unfinished | FaultKind::Unreachable)
                    {
                        known.forget(id); // asked again, it may be over
                    }
                    sender.send_replace(Some(result));
                });
                answer
            }
        };
        match answer.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err(Fault::failed("no answer"))),
            Err(_) => {
                self.forget(id);
                Err(Fault::failed("the request broke off without an answer").next("see the front end's log"))
            }
        }
    }

    /// The known request, or where to put the answer of a new one.
    #[allow(clippy::type_complexity)]
    fn join(
        &self,
        id: RequestId,
        what: String,
    ) -> std::result::Result<std::result::Result<watch::Receiver<Option<Result>>, watch::Sender<Option<Result>>>, Fault> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, answer)) = known.by_id.get(&id) {
            return if *before == what {
                Ok(Ok(answer.clone()))
            } else {
                Err(Fault::invalid(format!("request {id} was another one: {before}")).next("give every request an id of its own"))
            };
        }
        if known.order.len() >= KEPT
            && let Some(at) = known.order.iter().position(|old| known.by_id.get(old).is_none_or(|(_, a)| a.borrow().is_some()))
            && let Some(old) = known.order.remove(at)
        {
            known.by_id.remove(&old);
        }
        let sender = watch::Sender::new(None);
        known.by_id.insert(id, (what, sender.subscribe()));
        known.order.push_back(id);
        Ok(Err(sender))
    }

    fn forget(&self, id: RequestId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.by_id.remove(&id);
        known.order.retain(|other| *other != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use uuid::Uuid;

    #[tokio::test]
    async fn twice_is_once_and_another_request_is_not_taken_for_it() {
        let (once, count) = (Once::default(), Arc::new(AtomicU32::new(0)));
        let id = RequestId(Uuid::from_u128(1));
        let work = |fault: FaultKind| {
            let count = count.clone();
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Err(Fault::new(fault, "x"))
            }
        };
        let (a, b) = tokio::join!(
            once.run(id, "delete x".into(), work(FaultKind::Failed)),
            once.run(id, "delete x".into(), work(FaultKind::Failed))
        );
        assert_eq!(a, b);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let other = once.run(id, "delete y".into(), work(FaultKind::Failed)).await.unwrap_err();
        assert_eq!(other.kind, FaultKind::Invalid);
        let id = RequestId(Uuid::from_u128(2));
        for _ in 0..2 {
            once.run(id, "unmap x".into(), work(FaultKind::Unfinished)).await.unwrap_err();
        }
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let once = Once::default();
        for n in 0..3000 {
            let _ = once.run(RequestId(Uuid::from_u128(n)), String::new(), async { Err(Fault::failed("x")) }).await;
        }
        assert_eq!(once.0.lock().unwrap().by_id.len(), KEPT);
    }
}
