//! `ngx_http_proxy_v2_module`: the request as the upstream receives it over HTTP/2.

use weir_engine::http::Exchange;
use weir_engine::http1::{date, unbreak};
use weir_engine::upstream::RequestHead;
use weir_engine::upstream::exchange::RequestLength;
use weir_syntax::Level;

use super::request::{Rules, Way, write_uri};

impl Rules {
    /// Puts the head together and appends the replaced body.
    pub(super) fn head(
        &self,
        x: &Exchange,
        way: Way<'_>,
        length: RequestLength,
        body: &mut Vec<u8>,
    ) -> Result<RequestHead, u16> {
        let mut method = vec![];
        self.write_method(x, &mut method);
        let mut path = vec![];
        write_uri(x, way, &mut path);
        if path.is_empty() {
            x.log(Level::Error, "zero length URI to proxy");
            return Err(500);
        }
        let mut authority = self.host.as_ref().map_or_else(Vec::new, |host| host.value(x));
        if authority.is_empty() {
            authority.extend_from_slice(way.host);
        }
        unbreak(&mut authority);
        let mut head = RequestHead::new(method, path, authority);
        for (name, template) in &self.set {
            let mut value = template.value(x);
            // A header without a value is not sent at all.
            if !value.is_empty() {
                unbreak(&mut value);
                head.push(name.strip_suffix(b": ").unwrap_or(name), &value);
            }
        }
        let length = match &self.body {
            Some(replaced) => {
                let start = body.len();
                replaced.append(x, body);
                RequestLength::Known((body.len() - start) as u64)
            }
            None => length,
        };
        if let RequestLength::Known(length) = length
            && self.own_length
        {
            head.push(b"content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        if x.is_cacheable() {
            // What the cache has already need not be sent again.
            if let Some(time) = x.cache_last_modified().filter(|_| self.own_modified_since) {
                head.push(b"if-modified-since", date::http(time).as_ref());
            }
            if let Some(etag) = x.cache_etag().filter(|_| self.own_none_match) {
                head.push(b"if-none-match", etag);
            }
        }
        if self.pass_headers {
            for field in x.head.fields().iter().filter(|field| self.passes(x, field)) {
                head.push(x.head.get(field.name), x.head.get(field.value));
            }
        }
        Ok(head)
    }
}
