//! MIT's Kerberos library behind the mechanism.
//!
//! It finds its configuration (`KRB5_CONFIG`), the keytab (`KRB5_KTNAME`) and its replay cache by the environment, and
//! reads the keytab anew for each client.

use libgssapi::context::{SecurityContext, ServerCtx};
use libgssapi::credential::{Cred, CredUsage};
use libgssapi::error::Error;
use libgssapi::name::Name;
use libgssapi::oid::{GSS_MECH_KRB5, GSS_NT_KRB5_PRINCIPAL, OidSet};

use super::gssapi::{Accepted, Acceptor, Context, Kerberos, Names};

impl Kerberos {
    /// Accepts clients as a service (`zookeeper/host[@REALM]`), whose key the keytab has.
    ///
    /// # Errors
    /// If the keytab can't be read or has no such key, or the library can't find its realm; as the library says it.
    pub fn accept(service: &str, remove_host: bool, remove_realm: bool) -> Result<Self, String> {
        let acceptor = Service::acquire(service).map_err(|error| error.to_string())?;
        let full_name = display(&acceptor.0.name().map_err(|error| error.to_string())?)?;
        let realm = full_name.rsplit_once('@').map(|(_, realm)| realm.to_string());
        let realm = realm.ok_or_else(|| format!("{full_name} has no realm"))?;
        Ok(Self::new(Box::new(acceptor), Names { realm, remove_host, remove_realm }))
    }
}

/// The right to accept contexts.
struct Service(Cred);

impl Service {
    fn acquire(service: &str) -> Result<Self, Error> {
        let name = Name::new(service.as_bytes(), Some(GSS_NT_KRB5_PRINCIPAL))?;
        // No mechanism but Kerberos itself, not even one that negotiates it.
        let mechanisms = OidSet::singleton(GSS_MECH_KRB5)?;
        Ok(Self(Cred::acquire(Some(&name), None, CredUsage::Accept, Some(&mechanisms))?))
    }
}

impl Acceptor for Service {
    fn context(&self) -> Box<dyn Context> {
        Box::new(ServerCtx::new(Some(self.0.clone())))
    }
}

impl Context for ServerCtx {
    fn accept(&mut self, token: &[u8]) -> Result<Accepted, String> {
        let answer = self.step(token, None).map_err(|error| error.to_string())?;
        // What the client lets others do in its name is no concern of ours.
        drop(self.take_delegated_cred());
        Ok(Accepted { is_established: self.is_complete(), answer: answer.map(|answer| answer.to_vec()) })
    }

    fn client(&self) -> Result<String, String> {
        display(&self.source_name().map_err(|error| error.to_string())?)
    }

    fn wrap(&mut self, message: &[u8]) -> Result<Vec<u8>, String> {
        SecurityContext::wrap(self, false, message)
            .map(|token| token.to_vec())
            .map_err(|error| error.to_string())
    }

    fn unwrap(&mut self, token: &[u8]) -> Result<Vec<u8>, String> {
        SecurityContext::unwrap(self, token)
            .map(|message| message.to_vec())
            .map_err(|error| error.to_string())
    }
}

fn display(name: &Name) -> Result<String, String> {
    let bytes = name.display_name().map_err(|error| error.to_string())?;
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}
