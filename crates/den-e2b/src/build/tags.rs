//! Names of templates that are built, and the tags that lead to their builds.

use super::{Record, Start};
use crate::{E2b, error::ApiError, templates::Template, time::now};

/// The tag of names that have none.
pub(super) const DEFAULT: &str = "default";

/// What names of this house may begin with, as those of upstream's teams do.
const NAMESPACE: &str = "den/";

/// The longest name and tag, and the most tags of one template.
const NAME_BYTES_MAX: usize = 128;
const TAGS_MAX: usize = 100;

fn is_word(text: &str, more: &[u8]) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(fits)
}

/// Reads `[den/]name[:tag]`.
///
/// Errors: 400.
pub(super) fn parse(text: &str) -> Result<(String, Option<String>), ApiError> {
    let plain = text.strip_prefix(NAMESPACE).unwrap_or(text);
    let (name, tag) = match plain.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (plain, None),
    };
    if !is_word(name, b"-_") {
        let shown: String = text.chars().take(64).collect();
        return Err(ApiError::bad(format!("'{}' is no name of a template: a-z, 0-9, - and _", shown.escape_default())));
    }
    tag.map(check_tag).transpose()?;
    Ok((name.to_owned(), tag.map(str::to_owned)))
}

/// Errors: 400.
pub(crate) fn check_tag(tag: &str) -> Result<(), ApiError> {
    match is_word(tag, b"-_.") {
        true => Ok(()),
        false => {
            let shown: String = tag.chars().take(64).collect();
            Err(ApiError::bad(format!("'{}' is no tag: a-z, 0-9, -, _ and .", shown.escape_default())))
        }
    }
}

/// Tags without doubles.
///
/// Errors: 400 for what is none.
pub(super) fn all(tags: impl IntoIterator<Item = String>) -> Result<Vec<String>, ApiError> {
    let mut found: Vec<String> = Vec::new();
    for tag in tags {
        check_tag(&tag)?;
        if !found.contains(&tag) {
            found.push(tag);
        }
    }
    match found.len() {
        0..=TAGS_MAX => Ok(found),
        more => Err(ApiError::bad(format!("tags: {more} are more than {TAGS_MAX}"))),
    }
}

impl E2b {
    /// The template of an id or a name, and the tag that is named.
    pub(super) fn record(&self, text: &str) -> Option<(Record, Option<String>)> {
        let (name, tag) = parse(text).ok()?;
        let known = self.shelf().known();
        let found = known.records.get(&name).or_else(|| known.records.values().find(|record| record.name == name));
        found.cloned().map(|record| (record, tag))
    }

    /// What sandboxes begin as of a template that was built.
    pub(crate) fn built(&self, text: &str) -> Option<Template> {
        let (record, tag) = self.record(text)?;
        let tagged = record.tags.get(tag.as_deref().unwrap_or(DEFAULT))?;
        let made = self.shelf().known().builds.get(&tagged.build)?.facts().made?;
        let context = made.context;
        Some(Template {
            id: record.id,
            alias: Some(record.name),
            image: made.image,
            holder: Some(made.holder),
            start: made.start.map(|command| Start { command, how: made.start_how, context: context.clone() }),
            context: Some(context),
            run: Default::default(),
        })
    }

    /// The template of this name that was built and has a tag; the tag of the name, if it has one.
    pub(crate) fn built_exists(&self, text: &str) -> Option<(String, bool)> {
        let (record, tag) = self.record(text)?;
        let there = tag.map_or(!record.tags.is_empty(), |tag| record.tags.contains_key(&tag));
        there.then_some((record.id, record.public))
    }

    /// Errors: 404; 403 for an image.
    async fn of_tags(&self, text: &str) -> Result<(Record, Option<String>), ApiError> {
        match self.record(text) {
            Some(found) => Ok(found),
            None => {
                let template = self.template(text).await?;
                let what = if template.holder.is_none() { "an image of this house" } else { "a snapshot" };
                Err(ApiError::new(403, format!("template '{text}' is {what}: it has no tags of its own")))
            }
        }
    }

    /// Has further tags lead where a tag leads; the build.
    pub(super) async fn tag(&self, target: &str, tags: Vec<String>) -> Result<String, ApiError> {
        parse(target)?;
        let tags = all(tags)?;
        if tags.is_empty() {
            return Err(ApiError::bad("tags: none"));
        }
        let shelf = self.shelf();
        let _turn = shelf.turn().await?;
        let (mut record, tag) = self.of_tags(target).await?;
        let from = tag.as_deref().unwrap_or(DEFAULT);
        let build = record.tags.get(from).map(|tagged| tagged.build.clone());
        let build = build.ok_or_else(|| ApiError::new(404, format!("template '{target}' has no tag '{from}'")))?;
        let at = now().max(record.updated_at + 1);
        record.lead_to(&build, &tags, at);
        if record.tags.len() > TAGS_MAX {
            return Err(ApiError::bad(format!("a template has at most {TAGS_MAX} tags")));
        }
        shelf.keep_record(self.control(), record).await?;
        // A tag may have led to a build that nobody needs now.
        self.clear_under_turn().await?;
        Ok(build)
    }

    /// Takes tags away.
    pub(super) async fn untag(&self, name: &str, tags: Vec<String>) -> Result<(), ApiError> {
        let (_, tag) = parse(name)?;
        if tag.is_some() {
            return Err(ApiError::bad("name: without a tag"));
        }
        let tags = all(tags)?;
        if tags.iter().any(|tag| tag == DEFAULT) {
            return Err(ApiError::bad("the tag 'default' cannot be removed; delete the template"));
        }
        let shelf = self.shelf();
        let _turn = shelf.turn().await?;
        let (mut record, _) = self.of_tags(name).await?;
        for tag in &tags {
            if record.tags.remove(tag).is_none() {
                return Err(ApiError::new(404, format!("template '{name}' has no tag '{tag}'")));
            }
        }
        record.updated_at = now().max(record.updated_at + 1);
        shelf.keep_record(self.control(), record).await?;
        self.clear_under_turn().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_tag_or_none() {
        let read = |text: &str| parse(text).map_err(|error| error.status);
        assert_eq!(read("a-b_1"), Ok(("a-b_1".to_owned(), None)));
        assert_eq!(read("den/a:v1.0"), Ok(("a".to_owned(), Some("v1.0".to_owned()))));
        for bad in ["", ":x", "a:", "A", "a/b", "a:b:c", "a b", "ü", &"a".repeat(129)] {
            assert_eq!(read(bad), Err(400), "{bad}");
        }
        assert_eq!(
            all(["a".to_owned(), "b".to_owned(), "a".to_owned()]).map_err(|_| ()),
            Ok(vec!["a".into(), "b".into()])
        );
    }
}
