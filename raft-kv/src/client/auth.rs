//! Users, roles and permissions at this node's door: who a caller is, tokens, and the calls that
//! change and show them. What is allowed is decided in `machine/auth` alone.

use std::time::Duration;

use super::api::Answered;
use super::local::Local;
use crate::error::{AuthRefusal, Error, Refusal};
use crate::types::{AuthChange, AuthQuery, Caller};

impl Local {
    /// Changes users, roles or permissions.
    pub(super) async fn auth_change(&self, _change: AuthChange, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }

    /// Answers about users and roles.
    pub(super) async fn auth_query(&self, _query: AuthQuery, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }

    /// Checks a password; answers a token that every member knows at once.
    pub(super) async fn authenticate(
        &self,
        _name: String,
        _password: String,
        _patience: Duration,
    ) -> Answered {
        Err(AuthRefusal::NotEnabled.into())
    }

    /// Who a caller from outside is: by its token if it has one, else by its certificate's name.
    ///
    /// # Errors
    /// [`AuthRefusal::InvalidToken`].
    pub(super) fn caller(&self, _token: Option<&str>, _certificate: Option<&str>) -> Result<Caller, Error> {
        Ok(Caller::Anonymous)
    }
}
