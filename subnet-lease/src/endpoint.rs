//! URLs of the store: valid ones, and how to display others.
//!
//! People write `http://name:password@host`. An [`Endpoint`] never holds a name or password, so it is displayed as it
//! is. Anything else that may be a URL, or a list of URLs, is displayed through [`without_user`].

use std::fmt;
use std::net::Ipv6Addr;
use std::ops::Deref;
use std::str::FromStr;

/// The URL of a member: `http://` or `https://`, a host, an optional port, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

/// Why a text is not an [`Endpoint`]. Holds the text without user name and password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// It contains a user name, perhaps with a password.
    #[error(
        "endpoint {0} holds a user name or password; give a URL without them, such as http://127.0.0.1:2379"
    )]
    User(String),
    /// It is not a URL.
    #[error("endpoint {0:?} is not a URL such as http://127.0.0.1:2379")]
    NoUrl(String),
}

impl Endpoint {
    /// Returns whether the scheme is `https`.
    pub fn is_tls(&self) -> bool {
        self.starts_with("https://")
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// Ignores surrounding white space and a final slash.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let text = text.trim().trim_end_matches('/');
        let place = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match place {
            Some(place) if is_host_and_port(place) => Ok(Self(text.to_owned())),
            _ if names_user(text) => Err(InvalidEndpoint::User(without_user(text))),
            _ => Err(InvalidEndpoint::NoUrl(text.to_owned())),
        }
    }
}

impl Deref for Endpoint {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl PartialEq<&str> for Endpoint {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

/// Splits a comma-separated list of URLs. A comma in a password does not separate.
pub fn split_urls(list: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    let (mut from, mut end) = (list.len(), list.len());
    // From the back, because only the end of the user part shows that there is one. Its URL begins at the scheme.
    while let Some(comma) = list[..from].rfind(',') {
        from = comma;
        let url = &list[comma + 1..end];
        if url.contains("://") || !names_user(url) {
            urls.push(url);
            end = comma;
        }
    }
    urls.push(&list[..end]);
    urls.reverse();
    urls
}

/// Returns a URL or a list of URLs for display: `http://***@10.0.0.2:2379` for `http://name:password@10.0.0.2:2379`. A
/// text without a user is unchanged.
pub fn without_user(list: &str) -> String {
    if !names_user(list) {
        return list.to_owned();
    }
    split_urls(list).into_iter().map(one_without_user).collect::<Vec<_>>().join(",")
}

/// Does the same for one URL in a list that contains users.
fn one_without_user(url: &str) -> String {
    let end = AT.iter().filter_map(|at| Some(url.rfind(at)? + at.len())).max();
    match (end, url.split_once("://")) {
        // Without a user, this may be the first half of a URL that contains a comma.
        (None, _) => url.parse::<Endpoint>().map_or_else(|_| HIDDEN.to_owned(), |url| url.to_string()),
        (Some(end), Some((scheme, _))) if scheme.trim().chars().all(|c| c.is_ascii_alphabetic()) => {
            format!("{}://{HIDDEN}@{}", scheme.trim(), &url[end..])
        }
        (Some(end), _) => format!("{HIDDEN}@{}", &url[end..]),
    }
}

/// Replaces what is hidden.
const HIDDEN: &str = "***";

/// The separator between user and host, plain and encoded.
const AT: [&str; 2] = ["@", "%40"];

/// Returns whether a text may contain a user.
fn names_user(text: &str) -> bool {
    AT.iter().any(|at| text.contains(at))
}

/// Returns whether this end of a URL is a host, an optional port, and nothing else.
fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => {
            let (address, zone) = address.split_once('%').unwrap_or((address, ""));
            address.parse::<Ipv6Addr>().is_ok() && zone.chars().all(is_of_name)
        }
        None => !host.is_empty() && host.chars().all(is_of_name),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '.' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> InvalidEndpoint {
        text.parse::<Endpoint>().unwrap_err()
    }

    #[test]
    fn a_url_is_a_host_and_perhaps_a_port() {
        for good in ["http://etcd-1:2379", "https://[fd00::1]:2379", "http://[::1]", "http://10.0.0.1"] {
            assert_eq!(good.parse::<Endpoint>().unwrap(), good);
        }
        assert_eq!(" https://a:2379/".parse::<Endpoint>().unwrap(), "https://a:2379");
        for bad in [
            "",
            "127.0.0.1:2379",
            "ftp://127.0.0.1:2379",
            "http://127.0.0.1:99999",
            "http://",
            "http://host:",
            "http://a b",
            "http://name:word:2379",
            "http://host:2379/path",
        ] {
            assert_eq!(refusal(bad), InvalidEndpoint::NoUrl(bad.trim_end_matches('/').to_owned()));
        }
        let text = "endpoint \"a:1\" is not a URL such as http://127.0.0.1:2379";
        assert_eq!(refusal("a:1").to_string(), text);
    }

    #[test]
    fn a_user_is_refused_and_not_repeated() {
        for (text, shown) in [
            ("http://u:s3cret@10.0.0.2:2379", "http://***@10.0.0.2:2379"),
            ("https://s3cret@[fd00::1]/", "https://***@[fd00::1]"),
            ("u:s3cret@10.0.0.2:2379", "***@10.0.0.2:2379"),
            ("http://u:s3@cret@10.0.0.2:2379", "http://***@10.0.0.2:2379"),
            ("http://u:s3 cret@10.0.0.2:port", "http://***@10.0.0.2:port"),
            ("ftp://u:s3cret@10.0.0.2", "ftp://***@10.0.0.2"),
            ("u:s3cret://@10.0.0.2", "***@10.0.0.2"),
            ("http://u:s3cret%4010.0.0.2:2379", "http://***@10.0.0.2:2379"),
            ("http://u:%40s3cret@10.0.0.2", "http://***@10.0.0.2"),
            ("http://u:s3/c?r#et@10.0.0.2", "http://***@10.0.0.2"),
            ("http://u:s3cret@", "http://***@"),
        ] {
            assert_eq!(refusal(text), InvalidEndpoint::User(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_comma_in_a_password_separates_no_urls() {
        assert_eq!(split_urls("http://a:1, b:2,"), ["http://a:1", " b:2", ""]);
        let users = "http://h:1,http://u:1,2,3@i:2,http://v:4@j:3";
        assert_eq!(split_urls(users), ["http://h:1", "http://u:1,2,3@i:2", "http://v:4@j:3"]);
        assert_eq!(split_urls("u:1,2@i:2"), ["u:1,2@i:2"]);
    }

    #[test]
    fn of_a_list_all_is_shown_that_is_no_secret() {
        assert_eq!(without_user("http://a:1,b:2"), "http://a:1,b:2");
        assert_eq!(without_user("http://a:1,http://u:s3,cr,et@b:2"), "http://a:1,http://***@b:2");
        assert_eq!(without_user("http://u:s3,http://cret@b:2"), "***,http://***@b:2");
        assert_eq!(without_user("http://u:s3cret@a:1,https://b:2"), "http://***@a:1,https://b:2");
    }
}
