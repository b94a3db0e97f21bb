//! Our user in the store, and whether the store authenticates at all.

use etcd_client::Client;
use tokio::sync::watch;

use super::client::Store;
use super::failure::asks_nobody;

impl Store {
    /// Returns whether we have a user but authentication is disabled in the store, as of the last login: disabling it
    /// later makes the store ignore our token, not refuse it.
    pub fn user_ignored(&self) -> watch::Receiver<bool> {
        self.user_ignored.subscribe()
    }

    /// Describes that for people.
    pub fn user_ignored_text(&self) -> String {
        format!(
            "authentication is switched off in the store at {}: it ignores our user, and everybody who reaches it can \
             change the leases; switch it on (etcdctl auth enable), or give no user",
            self.endpoints()
        )
    }

    /// Logs in on a new connection if we have a name and password, for a token that goes with each request.
    pub(super) async fn log_in(&self, client: &mut Client) -> Result<(), etcd_client::Error> {
        let Some((name, password)) = &self.config.credentials.user else { return Ok(()) };
        let outcome = client.update_user(Some((name.clone(), password.reveal().to_owned()))).await;
        let ignored = match outcome {
            Ok(()) => false,
            Err(error) if asks_nobody(&error) => true,
            Err(error) => return Err(error),
        };
        self.user_ignored.send_if_modified(|before| std::mem::replace(before, ignored) != ignored);
        Ok(())
    }
}
