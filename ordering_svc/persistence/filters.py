"""Filters as conditions in SQL, with the same meaning as `passes` has in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, false, func, not_, or_, select, true
from sqlalchemy.dialects.postgresql import JSONB

from ordering_svc.domain.filtering import (
    COMPARE,
    Comparison,
    Conjunction,
    Disjunction,
    Field,
    Filter,
    Negation,
    Operator,
)
from ordering_svc.persistence.tables import OrderingRow, RevisionRow

COLUMNS: Mapping[Field, Any] = {
    Field.ORDERING_ID: OrderingRow.ordering_id,
    Field.KIND: OrderingRow.kind,
    Field.BASE_MODEL_ID: RevisionRow.base_model_id,
    Field.ADAPTER_MODEL_ID: OrderingRow.adapter_model_id,
    Field.DESCRIPTION: OrderingRow.description,
    Field.CREATE_TIME: OrderingRow.create_time_us,
    Field.UPDATE_TIME: OrderingRow.update_time_us,
    Field.REVISION_NUMBER: OrderingRow.revision_number,
}
LabelValue = Callable[[str], Any]


def condition(wanted: Filter, dialect: str) -> ColumnElement[bool]:
    """What rows of OrderingRow, joined with their newest RevisionRow, have to be; never NULL."""
    match wanted:
        case Conjunction(parts):
            return and_(*(condition(part, dialect) for part in parts))
        case Disjunction(parts):
            return or_(*(condition(part, dialect) for part in parts))
        case Negation(part):
            return not_(condition(part, dialect))
        case Comparison():
            return _compared(wanted, _label_on_postgresql if dialect == "postgresql" else _label_on_sqlite)


def _compared(comparison: Comparison, label_value: LabelValue) -> ColumnElement[bool]:
    value = comparison.value
    if comparison.field is not Field.LABEL:
        return _holds(COLUMNS[comparison.field], comparison)
    if comparison.key is None:
        return func.coalesce(label_value(str(value)).is_not(None), false())
    return func.coalesce(_holds(label_value(comparison.key), comparison), false())


def _holds(column: Any, comparison: Comparison) -> ColumnElement[bool]:
    if comparison.operator is not Operator.HAS:
        compared: ColumnElement[bool] = COMPARE[comparison.operator](column, comparison.value)
        return compared
    if not comparison.value:
        return column.is_not(None) if comparison.field is Field.LABEL else true()
    differs: ColumnElement[bool] = column != func.replace(column, comparison.value, "")
    return differs  # LIKE would ignore case, in one of the databases


def _label_on_sqlite(key: str) -> Any:
    pairs = func.json_each(OrderingRow.labels).table_valued("key", "value", joins_implicitly=True)
    return select(pairs.c.value).where(pairs.c.key == key).scalar_subquery()


def _label_on_postgresql(key: str) -> Any:
    return cast(OrderingRow.labels, JSONB).op("->>", return_type=Text())(key).collate("C")
