//! Sequences about users: some changes before authorisation is on, then requests as all kinds of
//! users between changes of users, roles and permissions, and off again at the end.

use etcd_api::authpb::{Permission, UserAddOptions};
use etcd_api::etcdserverpb::*;

use super::Generator;
use crate::ask::{Ask, Step};

const USERS: &[&str] = &["u0", "u1", "u2", "u3"];
const ROLES: &[&str] = &["r0", "r1", "r2"];
const ROOT: &str = "root";

/// How far the sequence is.
#[derive(Debug, Default)]
pub(super) struct Stage {
    step: usize,
}

fn step(user: Option<&str>, ask: Ask) -> Step {
    Step::Ask { user: user.map(str::to_owned), ask }
}

fn login(name: &str, password: &str) -> Ask {
    Ask::Authenticate(AuthenticateRequest { name: name.into(), password: password.into() })
}

fn add(name: &str) -> Ask {
    let password = format!("p-{name}");
    Ask::UserAdd(AuthUserAddRequest { name: name.into(), password, ..Default::default() })
}

impl Generator {
    pub(super) fn auth_step(&mut self) -> Step {
        let at = {
            let stage = self.auth.as_mut().expect("the sequence is about users");
            stage.step += 1;
            stage.step
        };
        match at {
            1..=50 => return self.before_auth(),
            51 => return step(None, Ask::AuthEnable(AuthEnableRequest {})),
            52 => return step(None, add(ROOT)),
            53 => return step(None, Ask::AuthEnable(AuthEnableRequest {})),
            54 => return step(None, Ask::RoleAdd(AuthRoleAddRequest { name: ROOT.into() })),
            55 => {
                let (user, role) = (ROOT.into(), ROOT.into());
                return step(None, Ask::UserGrantRole(AuthUserGrantRoleRequest { user, role }));
            }
            56 => return step(None, Ask::AuthEnable(AuthEnableRequest {})),
            57 => return step(None, login(ROOT, "p-root")),
            // Something to be allowed to, for whoever is there.
            58..=61 => return step(Some(ROOT), add(USERS[at - 58])),
            62..=64 => {
                return step(Some(ROOT), Ask::RoleAdd(AuthRoleAddRequest { name: ROLES[at - 62].into() }));
            }
            65..=72 => return step(Some(ROOT), self.permit()),
            73..=80 => return step(Some(ROOT), self.give_role()),
            81..=84 => return step(None, login(USERS[at - 81], &format!("p-{}", USERS[at - 81]))),
            _ => {}
        }
        if self.one_in(120) {
            let user = self.user();
            return self.watch_step(user);
        }
        match self.number(20) {
            0..=2 => {
                let user = if self.one_in(5) { self.user() } else { Some(ROOT.to_owned()) };
                Step::Ask { user, ask: self.auth_ask() }
            }
            3 => {
                let name = self.name();
                let password = if self.one_in(5) { "wrong".to_owned() } else { format!("p-{name}") };
                step(None, login(&name, &password))
            }
            _ => {
                let user = self.user();
                let ask = loop {
                    let ask = self.ask();
                    // Alarms stop all others, and only root may end them.
                    if !matches!(&ask, Ask::Alarm(alarm) if alarm.action == 1) {
                        break ask;
                    }
                    self.alarm = None;
                };
                Step::Ask { user, ask }
            }
        }
    }

    /// The steps that leave the servers as they were: off.
    pub(super) fn auth_end(&mut self) -> Vec<Step> {
        vec![
            step(None, login(ROOT, "p-root")),
            Step::Collect,
            step(Some(ROOT), Ask::UserList(AuthUserListRequest {})),
            step(Some(ROOT), Ask::AuthDisable(AuthDisableRequest {})),
            step(
                None,
                Ask::Range(RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }),
            ),
        ]
    }

    fn before_auth(&mut self) -> Step {
        let ask = match self.number(5) {
            0..=2 => self.auth_ask(),
            3 => login("u0", "p-u0"),
            _ => loop {
                let ask = self.ask();
                if !matches!(&ask, Ask::Alarm(_)) {
                    break ask;
                }
                self.alarm = None;
            },
        };
        step(None, ask)
    }

    fn user(&mut self) -> Option<String> {
        match self.number(14) {
            0..=1 => Some(ROOT.to_owned()),
            2 => Some("stranger".to_owned()),
            _ => Some(self.pick(USERS).to_owned()),
        }
    }

    fn name(&mut self) -> String {
        match self.number(16) {
            0 => String::new(),
            1 => "stranger".to_owned(),
            _ => self.pick(USERS).to_owned(),
        }
    }

    fn role(&mut self) -> String {
        match self.number(16) {
            0 => String::new(),
            1 => "nothing".to_owned(),
            2 => ROOT.to_owned(),
            _ => self.pick(ROLES).to_owned(),
        }
    }

    fn give_role(&mut self) -> Ask {
        let (user, role) = (self.name(), self.pick(ROLES).to_owned());
        Ask::UserGrantRole(AuthUserGrantRoleRequest { user, role })
    }

    /// etcd 3.4 finds a permission only if it is the first one on its key; one that is granted again
    /// would be there twice, and both would count.
    fn permit(&mut self) -> Ask {
        let role = self.role();
        let (key, range_end) = loop {
            let (key, range_end) = self.range();
            let ends = self.granted.entry((role.clone(), key.clone())).or_default();
            if ends.insert(range_end.clone()) || ends.len() == 1 {
                break (key, range_end);
            }
        };
        let perm_type = self.pick(&[0, 1, 2, 2, 0, 1, 2, 2]);
        let perm = Permission { perm_type, key: key.into(), range_end: range_end.into() };
        let perm = if self.one_in(25) { None } else { Some(perm) };
        Ask::RoleGrantPermission(AuthRoleGrantPermissionRequest { name: role, perm })
    }

    fn auth_ask(&mut self) -> Ask {
        let (name, role) = (self.name(), self.role());
        match self.number(20) {
            0..=1 => match self.number(6) {
                0 => Ask::UserAdd(AuthUserAddRequest { name, ..Default::default() }),
                1 => {
                    let options = Some(UserAddOptions { no_password: true });
                    Ask::UserAdd(AuthUserAddRequest { name, options, ..Default::default() })
                }
                _ => add(&name),
            },
            2 => Ask::UserGet(AuthUserGetRequest { name }),
            3 => Ask::UserList(AuthUserListRequest {}),
            4 if self.one_in(2) => Ask::UserDelete(AuthUserDeleteRequest { name }),
            5 => {
                let password = format!("p-{name}");
                Ask::UserChangePassword(AuthUserChangePasswordRequest {
                    name,
                    password,
                    ..Default::default()
                })
            }
            6..=7 => Ask::UserGrantRole(AuthUserGrantRoleRequest { user: name, role }),
            8 => Ask::UserRevokeRole(AuthUserRevokeRoleRequest { name, role }),
            9 => Ask::RoleAdd(AuthRoleAddRequest { name: role }),
            10..=11 => Ask::RoleGet(AuthRoleGetRequest { role }),
            12 => Ask::RoleList(AuthRoleListRequest {}),
            13 if self.one_in(3) && role != ROOT => Ask::RoleDelete(AuthRoleDeleteRequest { role }),
            14..=15 => self.permit(),
            16..=17 => {
                let (key, range_end) = self.range();
                Ask::RoleRevokePermission(AuthRoleRevokePermissionRequest {
                    role,
                    key: key.into(),
                    range_end: range_end.into(),
                })
            }
            18 => Ask::AuthStatus(AuthStatusRequest {}),
            _ => Ask::UserGet(AuthUserGetRequest { name }),
        }
    }
}
