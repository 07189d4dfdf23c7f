"""Multi-hop questions over a knowledge graph that can only be read through a tool.

A question `<bos> e3 r1 r5 ?` asks which entity is reached from e3 by the relations r1, then r5. An
action is `lookup e r <end>`, answered by the object of that fact, or `answer e <end>`, which ends the
episode. Anything else is answered by `error`, and the episode goes on.

Every episode has its own random graph, so that nothing can be learned by heart. Entities are the
leaves of a tree, and a relation of level k leads to a leaf that differs in the k-th branch on its way
only: a question's relations, of levels 1, 2, ..., narrow the answer down hop by hop.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.envs.environment import Message
from rewardjax.tasks.spelling import spell

SPECIAL = ("<pad>", "<bos>", "<end>", "?", "lookup", "answer", "error")
PAD, BOS, END, QUESTION, LOOKUP, ANSWER, ERROR = range(len(SPECIAL))

# What a turn was: not played, a lookup that made progress or did not, not understood, an answer.
UNPLAYED, USEFUL, USELESS, UNPARSED, ANSWERED = range(5)


class LookupState(struct.PyTreeNode):
    """One episode.

    Attributes:
      graph: a key; a fact is drawn from it whenever it is asked for.
      chain: the entities on the way, the question's first.
      relations: the relations that lead along it; -1 behind the last.
      known: how many hops have been looked up, in order.
      kinds: what each turn was.
      turn: how many were played.
      correct: whether the right answer was given.
    """

    graph: Key[Array, ""]
    chain: Int[Array, "hops_and_one"]
    relations: Int[Array, "hops"]
    known: Int[Array, ""]
    kinds: Int[Array, "turns"]
    turn: Int[Array, ""]
    correct: Bool[Array, ""]

    @property
    def hops(self) -> Int[Array, ""]:
        """How many relations the question has."""
        return jnp.sum(self.relations >= 0)

    @property
    def gold(self) -> Int[Array, ""]:
        """The answer, an entity."""
        return self.chain[self.hops]


@dataclass(frozen=True)
class LookupWorld:
    """The environment and its vocabulary; see `rewardjax.envs.environment.Environment`.

    Attributes:
      branching: of the tree of entities, which is `most_hops` levels deep.
      synonyms: relations of each level.
      fewest_hops, most_hops: relations in a question, uniformly.
      max_turns: turns that are recorded.

    Raises:
      ValueError: a field is out of its range.
    """

    branching: int = 3
    synonyms: int = 2
    fewest_hops: int = 2
    most_hops: int = 3
    max_turns: int = 5

    def __post_init__(self) -> None:
        for name, least in {"branching": 2, "synonyms": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 1 <= self.fewest_hops <= self.most_hops < self.max_turns:
            raise ValueError(
                "expected 1 <= fewest_hops <= most_hops < max_turns, found "
                f"{self.fewest_hops}, {self.most_hops}, {self.max_turns}"
            )

    pad = PAD
    end = END
    max_action = 4

    @property
    def entities(self) -> int:
        """How many there are."""
        return self.branching**self.most_hops

    @property
    def relations(self) -> int:
        """How many there are, those of the first level first."""
        return self.synonyms * self.most_hops

    @property
    def first_entity(self) -> int:
        """Id of the first entity, behind the relations."""
        return len(SPECIAL) + self.relations

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.first_entity + self.entities

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        relations = tuple(f"r{i}" for i in range(self.relations))
        return SPECIAL + relations + tuple(f"e{i}" for i in range(self.entities))

    @property
    def prompt_length(self) -> int:
        """Columns of a prompt."""
        return self.most_hops + 3

    @property
    def longest(self) -> int:
        """Columns of a transcript with an answer behind it."""
        return self.prompt_length + self.max_turns * (self.max_action + 1) + 2

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out; raises ValueError for an id that does not exist."""
        return spell(ids, self.vocabulary, self.pad)

    def fact(
        self, graph: Key[Array, ""], entity: Int[Array, ""], relation: Int[Array, ""]
    ) -> Int[Array, ""]:
        """The object of (entity, relation): the entity with one branch drawn anew."""
        key = jax.random.fold_in(graph, entity * self.relations + relation)
        step = self.branching ** (self.most_hops - 1 - relation // self.synonyms)
        branch = entity // step % self.branching
        return entity + step * (jax.random.randint(key, (), 0, self.branching) - branch)

    def reset(self, key: Key[Array, ""]) -> tuple[LookupState, Message]:
        """A question over a new graph."""
        graph, first_key, hops_key, relation_key = jax.random.split(key, 4)
        first = jax.random.randint(first_key, (), 0, self.entities)
        hops = jax.random.randint(hops_key, (), self.fewest_hops, self.most_hops + 1)
        synonyms = jax.random.randint(relation_key, (self.most_hops,), 0, self.synonyms)
        relations = self.synonyms * jnp.arange(self.most_hops) + synonyms

        def follow(entity, relation):
            reached = self.fact(graph, entity, relation)
            return reached, reached

        _, reached = jax.lax.scan(follow, first, relations)
        chain = jnp.concatenate([first[None], reached])
        asked = jnp.arange(self.most_hops) < hops
        kinds = jnp.full(self.max_turns, UNPLAYED)
        state = LookupState(
            graph,
            chain,
            jnp.where(asked, relations, -1),
            jnp.int32(0),
            kinds,
            jnp.int32(0),
            hops < 0,
        )
        shown = jnp.where(asked, len(SPECIAL) + relations, PAD)
        subject = first + self.first_entity
        tokens = jnp.array([BOS, subject, *shown, QUESTION])
        return state, Message(tokens, tokens != PAD)

    def step(
        self, state: LookupState, tokens: Int[Array, "action"], mask: Bool[Array, "action"]
    ) -> tuple[LookupState, Message, Float[Array, ""], Bool[Array, ""]]:
        """Read an action. The reward is 1 for the right answer (the F1 of one word), else 0."""
        word = jnp.pad(jnp.where(mask, tokens, PAD), (0, self.max_action))
        entity, relation = word[1] - self.first_entity, word[2] - len(SPECIAL)
        known_entity = (entity >= 0) & (entity < self.entities)
        known_relation = (relation >= 0) & (relation < self.relations)
        looks = (word[0] == LOOKUP) & known_entity & known_relation & (word[3] == END)
        answers = (word[0] == ANSWER) & known_entity & (word[2] == END)
        place = jnp.minimum(state.known, self.most_hops - 1)
        useful = (
            (state.known < state.hops)
            & (entity == state.chain[state.known])
            & (relation == state.relations[place])
        )
        kind = jnp.where(looks, jnp.where(useful, USEFUL, USELESS), UNPARSED)
        kind = jnp.where(answers, ANSWERED, kind)
        correct = answers & (entity == state.gold)
        asked = jnp.where(looks, entity, 0), jnp.where(looks, relation, 0)
        found = self.first_entity + self.fact(state.graph, *asked)
        seen = jnp.where(looks, found, ERROR)[None]
        state = state.replace(
            known=state.known + (looks & useful),
            kinds=state.kinds.at[state.turn].set(kind),
            turn=state.turn + 1,
            correct=correct,
        )
        return state, Message(seen, ~answers[None]), correct.astype(jnp.float32), answers

    def columns(self, state: LookupState) -> dict[str, Array]:
        """`gold` (an entity's token id), `kinds` `[turns]`, `known`, `hops`, `correct`."""
        return {
            "gold": self.first_entity + state.gold,
            "kinds": state.kinds,
            "known": state.known,
            "hops": state.hops,
            "correct": state.correct,
        }

    def answer_of(self, gold: Int[Array, "batch"]) -> Message:
        """The right answers as the policy would have to write them, without `<end>`."""
        tokens = jnp.stack([jnp.full_like(gold, ANSWER), gold], axis=1)
        return Message(tokens, jnp.ones_like(tokens, bool))

    def teacher(
        self,
        state: LookupState,
        key: Key[Array, ""],
        *,
        accuracy: float = 1.0,
        early: float = 0.0,
        slips: float = 0.0,
    ) -> Message:
        """An action as a teacher who knows the graph writes it.

        Args:
          state: the episode.
          key: a typed key.
          accuracy: probability that an entity or a relation is the right one; else it is random.
          early: probability of answering before all hops are known.
          slips: probability of an action that does not parse.
        """
        keys = jax.random.split(key, 6)
        done = state.known >= state.hops
        answer = done | jax.random.bernoulli(keys[0], early)
        right_entity, right_relation = jax.random.bernoulli(keys[1], accuracy, (2,))
        wanted = jnp.where(answer, state.gold, state.chain[state.known])
        drawn = jax.random.randint(keys[2], (), 0, self.entities)
        entity = self.first_entity + jnp.where(right_entity, wanted, drawn)
        next_relation = state.relations[jnp.minimum(state.known, self.most_hops - 1)]
        drawn = jax.random.randint(keys[3], (), 0, self.relations)
        relation = len(SPECIAL) + jnp.where(right_relation, next_relation, drawn)
        look = jnp.stack([jnp.int32(LOOKUP), entity, relation, jnp.int32(END)])
        tokens = jnp.where(answer, jnp.stack([jnp.int32(ANSWER), entity, END, PAD]), look)
        slip = jnp.array([LOOKUP, END, PAD, PAD])
        tokens = jnp.where(jax.random.bernoulli(keys[4], slips), slip, tokens)
        return Message(tokens, tokens != PAD)
