//! SASL's GSSAPI mechanism (RFC 4752), the server's side, with quality of protection `auth` alone, and how principals
//! become identities.
//!
//! The client's tokens establish a context, which proves its principal. Then the server offers what protection it has
//! for later messages, none, and the client says that it takes it and as whom it wants to act.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Step;

/// Tokens of clients. Tickets that list a user's groups are the longest: Active Directory bounds them by this.
const TOKEN_BYTES_MAX: usize = 64 << 10;
/// Tokens that establish a context. Kerberos takes one or two.
const ESTABLISHING_TOKENS_MAX: usize = 4;
/// Every request is judged by what its sender has proved, and carries it.
const PRINCIPAL_BYTES_MAX: usize = 1_024;

/// RFC 4752, section 3.3: the layer that leaves later messages as they are.
const NO_SECURITY_LAYER: u8 = 1;
/// That layer alone, and so no longest message.
const OFFER: [u8; 4] = [NO_SECURITY_LAYER, 0, 0, 0];

/// Proves clients by Kerberos.
pub struct Kerberos {
    acceptor: Box<dyn Acceptor>,
    names: Arc<Names>,
    room: Arc<Semaphore>,
}

/// Accepts contexts as the service.
pub(super) trait Acceptor: Send + Sync {
    /// A context of which nothing is known yet.
    fn context(&self) -> Box<dyn Context>;
}

/// A context between a client and the service. Its calls may block. Errors are reasons for the log.
pub(super) trait Context: Send {
    /// Takes the client's next token.
    fn accept(&mut self, token: &[u8]) -> Result<Accepted, String>;

    /// The principal of the client, once the context is established.
    fn client(&self) -> Result<String, String>;

    /// A message that nobody else can have written.
    fn wrap(&mut self, message: &[u8]) -> Result<Vec<u8>, String>;

    /// The message in a client's token.
    fn unwrap(&mut self, token: &[u8]) -> Result<Vec<u8>, String>;
}

/// What became of a token that is to establish a context.
pub(super) struct Accepted {
    pub(super) is_established: bool,
    pub(super) answer: Option<Vec<u8>>,
}

/// An exchange that waits for the client's next token.
pub(in crate::server) struct Exchange {
    context: Box<dyn Context>,
    stage: Stage,
}

/// What the next token is.
enum Stage {
    /// Another one that establishes the context, after so many.
    Establishing(usize),
    /// Empty: the client has heard that the context is established.
    Established,
    /// The answer to the offer.
    Offered,
}

impl Kerberos {
    #[cfg(any(test, feature = "kerberos"))]
    pub(super) fn new(acceptor: Box<dyn Acceptor>, names: Names) -> Self {
        /// Tokens that are worked on at a time: they may read files, and threads for that are for others too.
        const CONCURRENT_TOKENS_MAX: usize = 4;
        Self { acceptor, names: Arc::new(names), room: Arc::new(Semaphore::new(CONCURRENT_TOKENS_MAX)) }
    }

    pub(super) fn begin(&self) -> Exchange {
        Exchange { context: self.acceptor.context(), stage: Stage::Establishing(0) }
    }

    /// Works on a token, on a thread for what may block.
    pub(super) async fn step(&self, exchange: Exchange, token: &[u8]) -> Step {
        if token.len() > TOKEN_BYTES_MAX {
            return Step::Refused(format!("a token of {} bytes", token.len()));
        }
        let (token, names) = (token.to_vec(), self.names.clone());
        // The semaphore is never closed.
        let permit = self.room.clone().acquire_owned().await;
        let step = tokio::task::spawn_blocking(move || {
            // Held until the work is done, even if its client goes away.
            let _permit = permit;
            exchange.step(&token, &names)
        });
        step.await.unwrap_or_else(|error| Step::Refused(error.to_string()))
    }
}

impl Exchange {
    fn step(mut self, token: &[u8], names: &Names) -> Step {
        let step = match self.stage {
            Stage::Establishing(tokens) => self.establish(token, tokens),
            Stage::Established if token.is_empty() => self.offer(),
            Stage::Established => Err("an empty token was expected".into()),
            Stage::Offered => {
                let user = self.judge(token, names);
                return user.map_or_else(Step::Refused, |user| Step::Proved { user, token: None });
            }
        };
        match step {
            Ok(answer) => Step::Continue(super::Exchange::Gssapi(self), answer),
            Err(reason) => Step::Refused(reason),
        }
    }

    fn establish(&mut self, token: &[u8], tokens: usize) -> Result<Vec<u8>, String> {
        if tokens >= ESTABLISHING_TOKENS_MAX {
            return Err("too many tokens".into());
        }
        let Accepted { is_established, answer } = self.context.accept(token)?;
        self.stage = if is_established { Stage::Established } else { Stage::Establishing(tokens + 1) };
        match answer {
            // The client has nothing to hear before the offer.
            None if is_established => self.offer(),
            answer => Ok(answer.unwrap_or_default()),
        }
    }

    fn offer(&mut self) -> Result<Vec<u8>, String> {
        self.stage = Stage::Offered;
        self.context.wrap(&OFFER)
    }

    /// The identity that the client has proved, if it takes the offer and wants to act as nobody else.
    fn judge(&mut self, token: &[u8], names: &Names) -> Result<String, String> {
        let answer = self.context.unwrap(token)?;
        // The size in the middle is that of later messages with a layer.
        let Some(([layer, _, _, _], acts_as)) = answer.split_first_chunk::<4>() else {
            return Err("the answer to the offer is too short".into());
        };
        if *layer != NO_SECURITY_LAYER {
            return Err(format!("security layer {layer} is not offered"));
        }
        let principal = self.context.client()?;
        let identity = names.identity(&principal).ok_or_else(|| format!("no name for {principal:?}"))?;
        let is_own = [&b""[..], principal.as_bytes(), identity.as_bytes()].contains(&acts_as);
        if !is_own {
            return Err(format!("{principal:?} wants to act as {:?}", String::from_utf8_lossy(acts_as)));
        }
        Ok(identity)
    }
}

/// How principals become identities.
pub(super) struct Names {
    /// The realm of the service.
    pub(super) realm: String,
    /// Whether `alice/host@REALM` is `alice@REALM` (`kerberos.removeHostFromPrincipal`).
    pub(super) remove_host: bool,
    /// Whether `alice@REALM` is `alice` (`kerberos.removeRealmFromPrincipal`).
    pub(super) remove_realm: bool,
}

impl Names {
    /// The identity of `name[/host]@REALM`; none for what is written otherwise.
    ///
    /// A principal of another realm keeps its full name, as in ZooKeeper, or it could pass for one of ours.
    fn identity(&self, principal: &str) -> Option<String> {
        let (local, realm) = principal.split_once('@')?;
        let (name, host) = local.split_once('/').map_or((local, None), |(name, host)| (name, Some(host)));
        let is_plain = |part: &str| !part.is_empty() && !part.contains(['/', '@', '\\', '\0']);
        if principal.len() > PRINCIPAL_BYTES_MAX
            || ![name, realm, host.unwrap_or("-")].into_iter().all(is_plain)
        {
            return None;
        }
        if realm != self.realm {
            return Some(principal.into());
        }
        let host = host.filter(|_| !self.remove_host).map_or(String::new(), |host| format!("/{host}"));
        let realm = if self.remove_realm { String::new() } else { format!("@{realm}") };
        Some(format!("{name}{host}{realm}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A context that is established by the tokens `1` to `last`; what it wraps is put in brackets.
    struct Brackets {
        last: u8,
        /// Whether the last token is answered.
        is_mutual: bool,
    }

    impl Context for Brackets {
        fn accept(&mut self, token: &[u8]) -> Result<Accepted, String> {
            let &[number] = token else { return Err("defective".into()) };
            if number < b'1' {
                return Err("defective".into());
            }
            let is_established = number == self.last;
            Ok(Accepted {
                is_established,
                answer: (!is_established || self.is_mutual).then(|| b"go".to_vec()),
            })
        }

        fn client(&self) -> Result<String, String> {
            Ok("alice@HERE".into())
        }

        fn wrap(&mut self, message: &[u8]) -> Result<Vec<u8>, String> {
            Ok([b"[", message, b"]"].concat())
        }

        fn unwrap(&mut self, token: &[u8]) -> Result<Vec<u8>, String> {
            let inside = token.strip_prefix(b"[").and_then(|token| token.strip_suffix(b"]"));
            inside.map(<[u8]>::to_vec).ok_or_else(|| "defective".into())
        }
    }

    impl Acceptor for (u8, bool) {
        fn context(&self) -> Box<dyn Context> {
            Box::new(Brackets { last: self.0, is_mutual: self.1 })
        }
    }

    fn names(remove_host: bool, remove_realm: bool) -> Names {
        Names { realm: "HERE".into(), remove_host, remove_realm }
    }

    /// What a server answers to a client's tokens.
    async fn play(acceptor: (u8, bool), tokens: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let kerberos = Kerberos::new(Box::new(acceptor), names(false, true));
        let mut exchange = Some(kerberos.begin());
        let mut answers = Vec::new();
        for token in tokens {
            let Some(begun) = exchange.take() else { break };
            answers.push(match kerberos.step(begun, token).await {
                Step::Continue(super::super::Exchange::Gssapi(next), answer) => {
                    exchange = Some(next);
                    Ok(answer)
                }
                Step::Continue(..) => panic!("another mechanism"),
                Step::Proved { user, token } => {
                    assert_eq!(token, None);
                    Ok(user.into_bytes())
                }
                Step::Refused(reason) => Err(reason),
            });
        }
        answers
    }

    const OFFERED: &[u8] = b"[\x01\0\0\0]";

    #[tokio::test]
    async fn a_client_takes_the_offer_once_it_has_heard_of_its_context() {
        let took: &[u8] = b"[\x01\0\0\0]";
        let ok = |text: &[u8]| Ok(text.to_vec());
        let answers = play((b'1', true), &[b"1", b"", took]).await;
        assert_eq!(answers, [ok(b"go"), ok(OFFERED), ok(b"alice")]);
        let answers = play((b'1', false), &[b"1", took]).await;
        assert_eq!(answers, [ok(OFFERED), ok(b"alice")], "nothing to hear");
        let answers = play((b'3', true), &[b"1", b"2", b"3", b"", took]).await;
        assert_eq!(answers[1..], [ok(b"go"), ok(b"go"), ok(OFFERED), ok(b"alice")]);
    }

    #[tokio::test]
    async fn a_client_acts_as_itself_alone() {
        let last = |acts_as: &str| {
            let token = format!("[\x01\0\0\0{acts_as}]").into_bytes();
            async move { play((b'1', false), &[b"1", &token]).await.pop().unwrap() }
        };
        for own in ["", "alice@HERE", "alice"] {
            assert_eq!(last(own).await.unwrap(), b"alice", "{own}");
        }
        for other in ["bob", "bob@HERE", "alice@THERE", "alice\0", "Alice", " "] {
            let reason = last(other).await.unwrap_err();
            assert!(reason.contains("wants to act as"), "{reason}");
        }
    }

    #[tokio::test]
    async fn tokens_out_of_order_end_the_exchange() {
        let long = vec![b'1'; TOKEN_BYTES_MAX + 1];
        for (tokens, reason) in [
            (&[&b"!"[..]][..], "defective"),
            (&[b""], "defective"),
            (&[&long], "65537 bytes"),
            (&[b"1", b"2", b"3", b"4", b"5"], "too many"),
            (&[b"1", b"9", b"more"], "an empty token"),
            (&[b"9", b"", b"x"], "defective"),
            (&[b"9", b"", b"[]"], "too short"),
            (&[b"9", b"", b"[\0\0\0\0]"], "not offered"),
            (&[b"9", b"", b"[\x02\0\x10\0]"], "not offered"),
            (&[b"9", b"", b"[\x05\0\x10\0]"], "not offered"),
        ] {
            let answers = play((b'9', true), tokens).await;
            let (last, before) = answers.split_last().unwrap();
            assert!(last.as_ref().is_err_and(|error| error.contains(reason)), "{reason}: {last:?}");
            assert!(answers.len() == tokens.len() && before.iter().all(Result::is_ok), "{reason}");
        }
    }

    #[test]
    fn principals_become_identities_as_configured() {
        for (principal, plain, no_host, no_realm, neither) in [
            ("alice@HERE", "alice@HERE", "alice@HERE", "alice", "alice"),
            ("app/host@HERE", "app/host@HERE", "app@HERE", "app/host", "app"),
            ("alice@THERE", "alice@THERE", "alice@THERE", "alice@THERE", "alice@THERE"),
            ("app/h@THERE", "app/h@THERE", "app/h@THERE", "app/h@THERE", "app/h@THERE"),
        ] {
            let of =
                |remove_host, remove_realm| names(remove_host, remove_realm).identity(principal).unwrap();
            assert_eq!(
                [of(false, false), of(true, false), of(false, true), of(true, true)],
                [plain, no_host, no_realm, neither]
            );
        }
        let long = format!("{}@HERE", "a".repeat(PRINCIPAL_BYTES_MAX));
        for odd in [
            "",
            "alice",
            "@HERE",
            "alice@",
            "a/b/c@HERE",
            "/b@HERE",
            "a/@HERE",
            "a@b@HERE",
            "a\\@b@HERE",
            &long,
        ] {
            assert_eq!(names(false, false).identity(odd), None, "{odd}");
        }
    }

    proptest! {
        /// Without its key nobody wraps, so only who has it is heard.
        #[test]
        fn arbitrary_tokens_prove_nothing(tokens in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 1..6)) {
            let names = names(true, true);
            let mut exchange = Some(Exchange {
                context: Box::new(Brackets { last: b'1', is_mutual: true }),
                stage: Stage::Establishing(0),
            });
            for token in &tokens {
                let Some(begun) = exchange.take() else { break };
                match begun.step(token, &names) {
                    Step::Continue(super::super::Exchange::Gssapi(next), _) => exchange = Some(next),
                    Step::Continue(..) => prop_assert!(false, "another mechanism"),
                    Step::Proved { user, .. } => {
                        prop_assert_eq!(user, "alice");
                        prop_assert!(token.starts_with(b"[\x01"));
                    }
                    Step::Refused(_) => {}
                }
            }
        }
    }
}
