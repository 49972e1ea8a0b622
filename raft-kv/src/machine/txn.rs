//! Transactions: the path first, then every check on it, then its operations.
//!
//! All compares, nested ones too, look at the state before the transaction. Once the first
//! operation has run, nothing but the size of the answer can refuse the transaction.

use super::draft::Draft;
use super::kv;
use super::range::{Budget, check_txn_revision, range};
use super::stop::Stop;
use super::store::Read;
use super::versions::versions;
use crate::planted;
use crate::types::{
    Compare, CompareOp, CompareTarget, KeyValue, RangeRequest, Revision, TxnOp, TxnOpResponse, TxnRequest,
    TxnResponse,
};

/// The path through a transaction.
struct Plan<'t> {
    succeeded: bool,
    steps: Vec<Step<'t>>,
}

enum Step<'t> {
    Op(&'t TxnOp),
    Txn(Plan<'t>, &'t TxnRequest),
}

/// Runs a valid transaction.
pub fn txn(draft: &mut Draft, request: &TxnRequest, budget: &mut Budget) -> Result<TxnResponse, Stop> {
    let plan = plan(draft.view(), request, None)?;
    check(draft, &plan)?;
    run(draft, &plan, budget)
}

/// Runs a valid transaction that only reads, at revision `current`. Its newest state is that of `at`,
/// or all that is there.
pub fn read_only(
    view: &dyn Read,
    request: &TxnRequest,
    at: Option<Revision>,
    (current, compacted): (Revision, Revision),
) -> Result<TxnResponse, Stop> {
    assert!(request.is_read_only(), "a transaction that writes goes through the log");
    let plan = plan(view, request, at)?;
    let mut budget = Budget::new();
    let mut responses = Vec::with_capacity(plan.steps.len());
    let ranges = || {
        plan.steps.iter().filter_map(|step| match step {
            Step::Op(TxnOp::Range(request)) => Some(request),
            _ => None,
        })
    };
    for request in ranges() {
        check_txn_revision(view, request.revision, current, compacted)?;
    }
    for request in ranges() {
        let answer = match at {
            Some(at) if request.revision <= 0 => {
                let request = RangeRequest { revision: at, ..request.clone() };
                range(view, &request, None, &mut budget)?
            }
            _ => range(view, request, None, &mut budget)?,
        };
        responses.push(TxnOpResponse::Range(answer));
    }
    Ok(TxnResponse { succeeded: plan.succeeded, responses })
}

fn plan<'t>(view: &dyn Read, request: &'t TxnRequest, at: Option<Revision>) -> Result<Plan<'t>, Stop> {
    let mut succeeded = true;
    for compare in &request.compares {
        if !holds(view, compare, at)? {
            succeeded = false;
            break;
        }
    }
    let ops = if succeeded { &request.success } else { &request.failure };
    let mut steps = Vec::with_capacity(ops.len());
    for op in ops {
        steps.push(match op {
            TxnOp::Txn(nested) => Step::Txn(plan(view, nested, at)?, nested),
            op => Step::Op(op),
        });
    }
    Ok(Plan { succeeded, steps })
}

/// Whether every key of the range satisfies the compare; a range without keys counts as one
/// missing key.
fn holds(view: &dyn Read, compare: &Compare, at: Option<Revision>) -> Result<bool, Stop> {
    let mut any = false;
    for pair in versions(view, &compare.range, at) {
        let (key, stored) = pair?;
        any = true;
        let kv = match compare.target {
            CompareTarget::Value(_) => stored.load(view, key)?,
            _ => stored.without_value(key),
        };
        if !relation(compare, &kv) {
            return Ok(false);
        }
    }
    if any {
        return Ok(true);
    }
    let is_value = matches!(compare.target, CompareTarget::Value(_));
    Ok(!is_value && relation(compare, &KeyValue::default()))
}

fn relation(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(right) => kv.version.cmp(right),
        CompareTarget::Create(right) => kv.create_revision.cmp(right),
        CompareTarget::Mod(right) => kv.mod_revision.cmp(right),
        CompareTarget::Value(right) => kv.value.cmp(right),
        CompareTarget::Lease(right) => kv.lease.cmp(right),
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
        CompareOp::NotEqual => order.is_ne(),
    }
}

/// Every check on the path: those of puts before those of ranges, as etcd looks at them.
fn check(draft: &Draft, plan: &Plan) -> Result<(), Stop> {
    on_path(plan, &mut |op| match op {
        TxnOp::Put(request) => kv::check_put_in_txn(draft, request),
        TxnOp::Range(_) | TxnOp::Delete(_) | TxnOp::Txn(_) => Ok(()),
    })?;
    on_path(plan, &mut |op| match op {
        TxnOp::Range(request) => {
            check_txn_revision(draft.view(), request.revision, draft.revision, draft.compacted)
        }
        TxnOp::Put(_) | TxnOp::Delete(_) | TxnOp::Txn(_) => Ok(()),
    })
}

/// Asks `check` of each operation of the path, in order.
fn on_path(plan: &Plan, check: &mut dyn FnMut(&TxnOp) -> Result<(), Stop>) -> Result<(), Stop> {
    for step in &plan.steps {
        match step {
            Step::Txn(nested, _) => on_path(nested, check)?,
            Step::Op(op) => check(op)?,
        }
    }
    Ok(())
}

fn run(draft: &mut Draft, planned: &Plan, budget: &mut Budget) -> Result<TxnResponse, Stop> {
    let mut responses = Vec::with_capacity(planned.steps.len());
    for step in &planned.steps {
        responses.push(match step {
            Step::Op(TxnOp::Range(request)) => {
                TxnOpResponse::Range(range(draft.view(), request, None, budget)?)
            }
            Step::Op(TxnOp::Put(request)) => TxnOpResponse::Put(kv::put(draft, request, budget)?),
            Step::Op(TxnOp::Delete(request)) => TxnOpResponse::Delete(kv::delete(draft, request, budget)?),
            Step::Op(TxnOp::Txn(_)) => unreachable!("a nested transaction has a plan of its own"),
            Step::Txn(_, request) if planted!(CompareAfterWrites) => {
                let late = plan(draft.view(), request, None)?;
                TxnOpResponse::Txn(run(draft, &late, budget)?)
            }
            Step::Txn(nested, _) => TxnOpResponse::Txn(run(draft, nested, budget)?),
        });
    }
    Ok(TxnResponse { succeeded: planned.succeeded, responses })
}
