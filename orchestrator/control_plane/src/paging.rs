//! Pages of a list that is ordered by a key.
//!
//! A page token is the last key of the page before it. Whatever changes between two pages, nothing that stays is
//! listed twice or left out.

use tonic::Status;

use crate::status::invalid;

/// Page size unless the client says otherwise.
const PAGE_DEFAULT: usize = 100;
/// Most entries of a page.
const PAGE_MAX: usize = 1000;
/// Longest token that is looked at, bytes: a key of ours, prefixed.
const TOKEN_BYTES_MAX: usize = 256;

/// Which page is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRequest {
    kind: &'static str,
    after: Option<String>,
    size: usize,
}

impl PageRequest {
    /// Checks a request's fields. `kind` names the list: a token of another one is refused.
    pub(crate) fn new(kind: &'static str, page_size: u32, page_token: &str) -> Result<Self, Status> {
        let size = match usize::try_from(page_size) {
            Ok(0) => PAGE_DEFAULT,
            Ok(size) => size.min(PAGE_MAX),
            Err(_) => PAGE_MAX,
        };
        let after = match page_token {
            "" => None,
            token => {
                let key = token.strip_prefix(kind).and_then(|rest| rest.strip_prefix(':'));
                let key = key.filter(|_| token.len() <= TOKEN_BYTES_MAX).ok_or_else(|| {
                    let valid = "empty, or the next_page_token of the same list";
                    invalid("page_token", "it does not belong to this list", valid)
                })?;
                Some(key.to_owned())
            }
        };
        Ok(Self { kind, after, size })
    }

    /// The page, and the token of the next one (empty: this is the last).
    pub(crate) fn take<T>(&self, mut items: Vec<(String, T)>) -> (Vec<T>, String) {
        if let Some(after) = &self.after {
            items.retain(|(key, _)| key > after);
        }
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        let more = items.len() > self.size;
        items.truncate(self.size);
        let next = items.last().filter(|_| more).map(|(key, _)| format!("{}:{key}", self.kind));
        (items.into_iter().map(|(_, item)| item).collect(), next.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_list_once_in_order() {
        let items = || (0..250).rev().map(|n| (format!("{n:04}"), n)).collect::<Vec<_>>();
        let (mut seen, mut token) = (Vec::new(), String::new());
        for size in [0, 70, 1000] {
            let (page, next) = PageRequest::new("vm", size, &token).unwrap().take(items());
            seen.push(page.len());
            token = next;
        }
        assert_eq!((seen, token.as_str()), (vec![100, 70, 80], ""));
        let (page, _) = PageRequest::new("vm", 2, "vm:0099").unwrap().take(items());
        assert_eq!(page, [100, 101]);
    }

    #[test]
    fn a_foreign_token_is_refused() {
        for token in ["node:a", "vm", "x", &format!("vm:{}", "a".repeat(300))] {
            let status = PageRequest::new("vm", 0, token).unwrap_err();
            assert!(status.message().starts_with("page_token: "), "{status}");
        }
    }
}
