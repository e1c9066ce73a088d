import inspect

from fedprofile.common import errors
from fedprofile.common.errors import BudgetError, FedprofileError, MessageError, ReplyRejected


def test_all_errors_are_of_one_tree_with_the_exit_codes_of_the_command():
    found = [e for _, e in inspect.getmembers(errors, inspect.isclass) if e is not FedprofileError]
    assert len(found) >= 7
    for error in found:
        assert issubclass(error, FedprofileError)
        assert error.exit_code == (3 if error is BudgetError else 2)
        assert error.__name__ in errors.__doc__


def test_errors_carry_what_their_handlers_need():
    refused = BudgetError("too much", epsilon_reached=9.5)
    assert (str(refused), refused.epsilon_reached) == ("too much", 9.5)
    rejected = ReplyRejected("norm", "too long")
    assert isinstance(rejected, MessageError)
    assert (str(rejected), rejected.reason) == ("norm: too long", "norm")
