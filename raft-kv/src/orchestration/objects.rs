//! Objects and their indexes.

use bytes::Bytes;

use super::draft::Draft;
use super::orchestrator::{CHANGED, Change, Orchestrator};
use super::page::{self, Listed, Page};
use super::store::{Clock, Store};
use super::stored::{object_bytes, object_of};
use super::words::{Object, ObjectKey, Time};
use super::{layout, rules};
use crate::error::{Error, NotDone, Refusal};
use crate::limits::{MAX_OBJECT_STATUS_BYTES, MAX_ORCHESTRATION_TRIES};
use crate::types::Revision;

/// Which objects of a kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectBy {
    /// All.
    All,
    /// Those with a label of that name and value.
    Label(String, String),
    /// Those that refer to an object.
    Ref(ObjectKey),
}

impl<S: Store, C: Clock> Orchestrator<S, C> {
    /// Stores a new object. `version`, `created` and `updated` are not looked at.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::NameTaken`], [`Refusal::NotThere`] for what it refers to, and
    /// [`batch`](Self::batch)'s.
    pub async fn create(&self, object: Object) -> Result<Object, Error> {
        self.change_object(Change::Create(object)).await
    }

    /// Changes anything of an object but its status; its `version` must be the stored one.
    ///
    /// # Errors
    /// [`Refusal::VersionConflict`], and [`create`](Self::create)'s.
    pub async fn update(&self, object: Object) -> Result<Object, Error> {
        self.change_object(Change::Update(object)).await
    }

    /// Removes an object with its status; `version` must be the stored one.
    ///
    /// # Errors
    /// [`Refusal::VersionConflict`], [`Refusal::NotThere`], [`Refusal::InUse`] where another object refers to it,
    /// and [`batch`](Self::batch)'s.
    pub async fn delete(&self, key: &ObjectKey, version: Revision) -> Result<(), Error> {
        self.batch(vec![Change::Delete(key.clone(), version)]).await.map(drop)
    }

    /// Sets an object's status, whatever its version is.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], [`Refusal::Invalid`] for one that is too long, and the store's.
    pub async fn set_status(&self, key: &ObjectKey, status: Bytes) -> Result<(), Error> {
        if status.len() > MAX_OBJECT_STATUS_BYTES {
            let why = format!("it has {} bytes, the limit is {MAX_OBJECT_STATUS_BYTES}", status.len());
            return Err(Refusal::invalid("status", why).into());
        }
        for _ in 0..MAX_ORCHESTRATION_TRIES {
            let mut draft = Draft::new(&self.store);
            needed(&mut draft, key).await?;
            draft.hold_existence(&layout::object(key)).await?;
            draft.put(layout::object_status(key), status.clone());
            if self.commit(draft).await?.is_some() {
                return Ok(());
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }

    /// An object by its id.
    ///
    /// # Errors
    /// The store's.
    pub async fn object(&self, key: &ObjectKey) -> Result<Option<Object>, Error> {
        let mut draft = Draft::new(&self.store);
        draft.fetch(vec![layout::object(key), layout::object_status(key)]).await?;
        read(&mut draft, key).await
    }

    /// An object by its name.
    ///
    /// # Errors
    /// The store's.
    pub async fn object_named(&self, kind: &str, name: &str) -> Result<Option<Object>, Error> {
        let mut draft = Draft::new(&self.store);
        let Some(kv) = draft.get(&layout::object_name(kind, name)).await? else { return Ok(None) };
        let id = String::from_utf8_lossy(&kv.value).into_owned();
        let key = ObjectKey { kind: kind.into(), id };
        draft.fetch(vec![layout::object(&key), layout::object_status(&key)]).await?;
        read(&mut draft, &key).await
    }

    /// Objects of a kind, by their ids.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for a page of another listing, [`Refusal::Compacted`] for one of a revision that is
    /// gone, and the store's.
    pub async fn objects(&self, kind: &str, by: ObjectBy, page: Page) -> Result<Listed<Object>, Error> {
        let range = match by {
            ObjectBy::All => layout::objects(kind),
            ObjectBy::Label(name, value) => layout::objects_labelled(kind, &(name, value)),
            ObjectBy::Ref(to) => layout::referring_of_kind(&to, kind),
        };
        let page::Keys { kvs, revision, next } = page::keys(&self.store, range, page, true).await?;
        let of = |kv: &crate::types::KeyValue| layout::last_part(&kv.key);
        let ids: Vec<ObjectKey> =
            kvs.iter().filter_map(of).map(|id| ObjectKey { kind: kind.into(), id }).collect();
        let wanted: Vec<Bytes> =
            ids.iter().flat_map(|id| [layout::object(id), layout::object_status(id)]).collect();
        let found = page::read_all(&self.store, &wanted, revision).await?;
        let mut items = Vec::with_capacity(ids.len());
        for pair in found.chunks(2) {
            if let [Some(kv), status] = pair {
                items.push(object_of(kv, status.as_ref())?);
            }
        }
        Ok(Listed { items, revision, next })
    }
}

fn what(key: &ObjectKey) -> String {
    format!("{} {}", key.kind, key.id)
}

async fn read<S: Store>(draft: &mut Draft<'_, S>, key: &ObjectKey) -> Result<Option<Object>, Error> {
    let Some(kv) = draft.get(&layout::object(key)).await? else { return Ok(None) };
    let status = draft.get(&layout::object_status(key)).await?;
    object_of(&kv, status.as_ref()).map(Some)
}

async fn needed<S: Store>(draft: &mut Draft<'_, S>, key: &ObjectKey) -> Result<Object, Error> {
    read(draft, key).await?.ok_or_else(|| Refusal::NotThere { what: what(key) }.into())
}

/// Index keys of an object, its name's apart.
fn indexes(object: &Object) -> impl Iterator<Item = Bytes> {
    let labels = object.labels.iter().map(|label| layout::object_label(&object.key, label));
    labels.chain(object.refs.iter().map(|to| layout::object_ref(&object.key, to)))
}

async fn take_name<S: Store>(draft: &mut Draft<'_, S>, object: &Object) -> Result<(), Error> {
    let key = layout::object_name(&object.key.kind, &object.name);
    if draft.get(&key).await?.is_some() {
        let (kind, name) = (object.key.kind.clone(), object.name.clone());
        return Err(Refusal::NameTaken { kind, name }.into());
    }
    draft.hold(&key).await?;
    draft.put(key, object.key.id.clone().into());
    Ok(())
}

async fn check_refs<S: Store>(draft: &mut Draft<'_, S>, object: &Object) -> Result<(), Error> {
    for to in object.refs.iter().filter(|to| **to != object.key) {
        let key = layout::object(to);
        if draft.get(&key).await?.is_none() {
            return Err(Refusal::NotThere { what: what(to) }.into());
        }
        draft.hold_existence(&key).await?;
    }
    Ok(())
}

fn write<S: Store>(draft: &mut Draft<'_, S>, object: &Object) {
    draft.put(layout::object(&object.key), object_bytes(object));
    for key in indexes(object) {
        draft.put(key, Bytes::new());
    }
}

pub async fn create<S: Store>(
    draft: &mut Draft<'_, S>,
    mut object: Object,
    now: Time,
) -> Result<Object, Error> {
    let key = layout::object(&object.key);
    if draft.get(&key).await?.is_some() {
        return Err(Refusal::Exists { what: what(&object.key) }.into());
    }
    draft.hold(&key).await?;
    take_name(draft, &object).await?;
    check_refs(draft, &object).await?;
    (object.created, object.updated, object.version) = (now, now, CHANGED);
    write(draft, &object);
    match object.status.is_empty() {
        true => draft.remove(layout::object_status(&object.key)),
        false => draft.put(layout::object_status(&object.key), object.status.clone()),
    }
    Ok(object)
}

pub async fn update<S: Store>(
    draft: &mut Draft<'_, S>,
    mut object: Object,
    now: Time,
) -> Result<Object, Error> {
    let before = needed(draft, &object.key).await?;
    rules::version(|| what(&object.key), object.version, before.version)?;
    draft.hold(&layout::object(&object.key)).await?;
    (object.created, object.updated, object.version) = (before.created, now, CHANGED);
    object.status = before.status.clone();
    if object.name != before.name {
        take_name(draft, &object).await?;
        draft.remove(layout::object_name(&before.key.kind, &before.name));
    }
    check_refs(draft, &object).await?;
    if !crate::planted!(IndexForgotten) {
        for key in indexes(&before) {
            draft.remove(key);
        }
    }
    write(draft, &object);
    Ok(object)
}

pub async fn delete<S: Store>(
    draft: &mut Draft<'_, S>,
    key: &ObjectKey,
    version: Revision,
) -> Result<(), Error> {
    let before = needed(draft, key).await?;
    rules::version(|| what(key), version, before.version)?;
    draft.hold(&layout::object(key)).await?;
    let (users, _) = draft.scan(layout::referring(key), 2).await?;
    let own = layout::object_ref(key, key);
    if let Some(user) = users.into_iter().find(|user| *user != own) {
        let parts = layout::parts(&user).unwrap_or_default();
        let by = parts.iter().rev().take(2).rev().cloned().collect::<Vec<_>>().join(" ");
        return Err(Refusal::InUse { what: what(key), by }.into());
    }
    draft.remove(layout::object(key));
    draft.remove(layout::object_status(key));
    draft.remove(layout::object_name(&key.kind, &before.name));
    for index in indexes(&before) {
        draft.remove(index);
    }
    Ok(())
}
