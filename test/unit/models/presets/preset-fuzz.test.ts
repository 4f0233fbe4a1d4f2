import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { keepLastGood, unreadablePreset } from '../../../../src/models/presets/last-good-preset.js';
import { parsePreset, type Preset } from '../../../../src/models/presets/preset-file.js';
import { byKey, table } from '../help-table.js';

/**
 * A presets file as its author means it. `written` below turns it into bytes, and `meaning` says what llama-server's
 * rules make of it, from this model alone: neither looks at the parser.
 */
interface FileModel {
  readonly newline: string;
  readonly endsInNewline: boolean;
  /** The first one stands before the first header. */
  readonly sections: readonly SectionModel[];
}

interface SectionModel {
  readonly header: Name;
  readonly decoration: string;
  readonly lines: readonly LineModel[];
}

interface Name {
  readonly text: string;
  readonly id: string;
}

type LineModel =
  | { readonly kind: 'silent'; readonly text: string }
  | { readonly kind: 'broken'; readonly bytes: Uint8Array }
  | {
      readonly kind: 'entry';
      readonly key: Key;
      readonly equals: string;
      readonly value: string;
      readonly decoration: string;
    };

interface Key {
  readonly text: string;
  /** The canonical option; undefined where the key sets none. */
  readonly option?: string;
  readonly negates?: boolean;
  readonly unknown?: boolean;
}

const KEYS: readonly Key[] = [
  { text: 'c', option: 'ctx-size' },
  { text: 'ctx-size', option: 'ctx-size' },
  { text: 'LLAMA_ARG_CTX_SIZE', option: 'ctx-size' },
  { text: 'temp', option: 'temperature' },
  { text: 'temperature', option: 'temperature' },
  { text: 'slots', option: 'slots' },
  { text: 'no-slots', option: 'slots', negates: true },
  { text: 'LLAMA_ARG_NO_ENDPOINT_SLOTS', option: 'slots' },
  { text: 'chat-template', option: 'chat-template' },
  { text: 'stop-timeout', option: 'stop-timeout' },
  { text: 'dedup-cache-models', option: 'dedup-cache-models' },
  { text: 'alias', option: 'alias' },
  { text: 'version' },
  { text: 'host' },
  { text: 'LLAMA_ARG_MODELS_MAX' },
  { text: '__proto__', unknown: true },
  { text: 'ctx_size', unknown: true },
  { text: 'a.b-c_1', unknown: true },
];

const PREAMBLE: Name = { text: 'default', id: 'default' };
const NAMES: readonly Name[] = [
  { text: '*', id: '*' },
  PREAMBLE,
  ...['m', 'Qwen3.5-8B', 'org/repo.name', '__proto__', 'padded ', '"q"', '*.*'].map((text) => ({
    text,
    id: text,
  })),
  { text: 'u/r:q8_0', id: 'u/r:Q8_0' },
  { text: 'u/r:Q8_0', id: 'u/r:Q8_0' },
  { text: 'u/r:ud-q8_0', id: 'u/r:Q8_0' },
  { text: 'x:y:latest', id: 'x:y:LATEST' },
];

const blanks = fc.constantFrom('', ' ', '\t', '  \t ');
const anyText = fc.string({ unit: 'binary', maxLength: 12 });
const oneLine = anyText.filter((text) => !/[\r\n\0]/.test(text));
const comment = fc.tuple(fc.constantFrom(';', '#'), oneLine).map((parts) => parts.join(''));
/** What may follow a value or a header on its line. */
const decoration = fc.tuple(blanks, fc.option(comment, { nil: '' })).map(([before, text]) => before + text);

const value = fc.oneof(
  fc.constantFrom('', '1', '0', 'true', 'false', 'on', 'off', 'enabled', 'disabled', 'yes', 'True', '"x"'),
  oneLine.map((text) => text.replace(/[;#]/g, '').replace(/^[ \t]+|[ \t]+$/g, '')),
);
const entry = fc.record({
  kind: fc.constant('entry' as const),
  key: fc.constantFrom(...KEYS),
  equals: fc.tuple(blanks, blanks).map(([before, after]) => `${before}=${after}`),
  value,
  decoration,
});
const silent = fc.record({ kind: fc.constant('silent' as const), text: decoration });
const broken = fc
  .constantFrom('words', ' c = 1', '--temp = 1', '= 1', '7 = 1', 'c 1', '-', 'temp = \0', 'ü = 1')
  .map((text) => Buffer.from(text))
  .chain((bytes) => fc.constantFrom(bytes, Buffer.from([0x63, 0x3d, 0xff]), Buffer.from([0x3b, 0xc3])))
  .map((bytes) => ({ kind: 'broken' as const, bytes }));

const name = fc.oneof(
  { weight: 5, arbitrary: fc.constantFrom(...NAMES) },
  {
    weight: 1,
    arbitrary: oneLine
      .map((text) => text.replace(/[\]:]/g, '').replace(/^[ \t]+/, ''))
      .filter((text) => text !== '')
      .map((text) => ({ text, id: text })),
  },
);

function fileModel(lines: fc.Arbitrary<LineModel>): fc.Arbitrary<FileModel> {
  const body = fc.array(lines, { maxLength: 5 });
  const preamble = fc.record({ header: fc.constant(PREAMBLE), decoration: fc.constant(''), lines: body });
  const section = fc.record({ header: name, decoration, lines: body });
  return fc.record({
    newline: fc.constantFrom('\n', '\r\n', '\r'),
    endsInNewline: fc.boolean(),
    sections: fc
      .tuple(preamble, fc.array(section, { maxLength: 6 }))
      .map(([first, others]) => [first, ...others]),
  });
}

const wellFormed = fileModel(fc.oneof({ weight: 4, arbitrary: entry }, { weight: 1, arbitrary: silent }));
const partlyBroken = fileModel(
  fc.oneof(
    { weight: 4, arbitrary: entry },
    { weight: 1, arbitrary: silent },
    { weight: 1, arbitrary: broken },
  ),
);

function written({ newline, endsInNewline, sections }: FileModel): Uint8Array {
  const lines = sections.flatMap(({ header, decoration: after, lines: body }, index) => [
    ...(index === 0 ? [] : [Buffer.from(`[${header.text}]${after}`)]),
    ...body.map((line) => lineBytes(line)),
  ]);
  const ends = lines.map((_, index) => (endsInNewline || index < lines.length - 1 ? newline : ''));
  return Buffer.concat(lines.flatMap((line, index) => [line, Buffer.from(ends[index] ?? '')]));
}

function lineBytes(line: LineModel): Uint8Array {
  switch (line.kind) {
    case 'silent':
      return Buffer.from(line.text);
    case 'broken':
      return line.bytes;
    case 'entry':
      return Buffer.from(line.key.text + line.equals + line.value + line.decoration);
  }
}

interface Meaning {
  readonly values: Record<string, string>;
  readonly line: number;
  /** The lines at fault, in order. */
  readonly faults: readonly number[];
}

/** What each model's section and `[*]` say, by id: by the rules of contract, not of the parser. */
function meaning({ sections }: FileModel): Map<string, Meaning> {
  const byHeader = new Map<string, Meaning & { readonly id: string }>();
  let line = 1;
  for (const [index, { header, lines }] of sections.entries()) {
    const first = index === 0 ? line : line + 1;
    byHeader.set(header.text, { id: header.id, line, ...meaningOfLines(lines, first) });
    line = first + lines.length;
  }
  const byId = new Map<string, Meaning>();
  const headers = [...byHeader].sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  for (const [, { id, ...rest }] of headers) byId.set(id, rest);
  if (Object.keys(byId.get('default')?.values ?? {}).length === 0) byId.delete('default');
  return byId;
}

function meaningOfLines(lines: readonly LineModel[], first: number): Pick<Meaning, 'values' | 'faults'> {
  const faults = new Set<number>();
  const spellings = new Map<string, { readonly key: Key; readonly value: string }>();
  for (const [index, line] of lines.entries()) {
    if (line.kind === 'broken') faults.add(first + index);
    if (line.kind !== 'entry') continue;
    if (line.key.unknown === true) faults.add(first + index);
    spellings.set(line.key.text, line);
  }

  const values: Record<string, string> = {};
  for (const text of [...spellings.keys()].sort()) {
    const { key, value: given } = spellings.get(text) ?? { key: { text }, value: '' };
    if (key.option === undefined) continue;
    const isYes = ['true', 'on', 'enabled', '1'].includes(given);
    values[key.option] = key.negates === true ? (isYes ? 'false' : 'true') : given;
  }
  return { values, faults: [...faults].sort((a, b) => a - b) };
}

const FILE = 'p.ini';
const parse = (bytes: Uint8Array): Preset => parsePreset(bytes, FILE, table);

/** The line a message names; not a number where it names none. */
function lineOf(message: string): number {
  return Number(/^p\.ini:([0-9]+): ./s.exec(message)?.[1] ?? NaN);
}

function expectSameMeaning(model: FileModel): void {
  const expected = meaning(model);
  const { sections, global, globalProblems } = parse(written(model));
  const shared = expected.get('*');
  expect(byKey(global)).toEqual(shared?.values ?? {});
  expect(globalProblems.map(lineOf)).toEqual(shared?.faults ?? []);
  expected.delete('*');
  const read = sections.map(({ name: id, line, values, problems }) => {
    return [id, { values: byKey(values), line, faults: problems.map(lineOf) }] as const;
  });
  expect(new Map(read)).toEqual(expected);
  expect(read).toHaveLength(expected.size);
}

describe('a file that is written from a model of it', () => {
  it('means what the model says', () => {
    fc.assert(fc.property(wellFormed, expectSameMeaning), { numRuns: 500 });
  });

  it('means what the model says where lines of it are broken, too: each costs its own section only', () => {
    fc.assert(fc.property(partlyBroken, expectSameMeaning), { numRuns: 500 });
  });

  it('is such that every kind of section and line occurs: what is never written is never tested', () => {
    const seen = fc
      .sample(partlyBroken, { numRuns: 1000, seed: 1 })
      .flatMap(({ sections }) => sections)
      .flatMap(({ header, lines }) => [
        header.text,
        ...lines.map((line) => (line.kind === 'entry' ? `${line.key.text} =` : line.kind)),
      ]);
    const kinds = [
      ...NAMES.map(({ text }) => text),
      ...KEYS.map(({ text }) => `${text} =`),
      'silent',
      'broken',
    ];
    expect(kinds.filter((kind) => !seen.includes(kind))).toEqual([]);
  });
});

/** Text that is nearly a presets file: what the grammar is made of, in any order. */
const nearly = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        '[',
        ']',
        '=',
        ';',
        '#',
        '\n',
        '\r',
        '\r\n',
        ' ',
        '\t',
        '\0',
        '\u{FEFF}',
        ':',
        '-',
        '*',
      ),
      fc.constantFrom(
        'm',
        'default',
        'c',
        'no-slots',
        'u/r:q8_0',
        'version',
        'model-draft',
        '"',
        '{',
        '\u2028',
      ),
      anyText,
    ),
    { maxLength: 40 },
  )
  .map((parts) => Buffer.from(parts.join('')));
const anyBytes = fc.oneof(fc.uint8Array({ maxLength: 200 }), nearly);
const anyPreset = fc.oneof(anyBytes, partlyBroken.map(written)).map(parse);

describe('a file of any bytes', () => {
  it('is read without throwing, and whatever is said about it names a line that it has', () => {
    fc.assert(
      fc.property(anyBytes, (bytes) => {
        const lineCount = Buffer.from(bytes)
          .toString('latin1')
          .split(/\r\n|\n|\r/).length;
        const { sections, globalProblems, warnings } = parse(bytes);
        const messages = [...warnings, ...globalProblems, ...sections.flatMap(({ problems }) => problems)];
        const lines = [...messages.map(lineOf), ...sections.map(({ line }) => line)];
        expect(lines.filter((line) => !(line >= 1 && line <= lineCount))).toEqual([]);
      }),
      { numRuns: 2000 },
    );
  });

  it('has each model once, by a name that is not empty', () => {
    fc.assert(
      fc.property(anyBytes, (bytes) => {
        const names = parse(bytes).sections.map(({ name: id }) => id);
        expect(new Set(names).size).toBe(names.length);
        expect(names).not.toContain('');
        expect(names).not.toContain('*');
      }),
      { numRuns: 500 },
    );
  });

  it('loses no line that is broken or unknown without a word about it, not even in a section that is replaced', () => {
    fc.assert(
      fc.property(partlyBroken, (model) => {
        const { sections, warnings } = parse(written(model));
        const said = new Set([...warnings, ...sections.flatMap(({ problems }) => problems)].map(lineOf));
        let line = 0;
        for (const [index, { lines }] of model.sections.entries()) {
          if (index > 0) line++;
          for (const each of lines) {
            line++;
            const isBad = each.kind === 'broken' || (each.kind === 'entry' && each.key.unknown === true);
            if (isBad) expect(said).toContain(line);
          }
        }
      }),
    );
  });
});

describe('keeping the last good form', () => {
  const namesOf = ({ sections }: Preset): string[] => sections.map(({ name: id }) => id);

  it('changes nothing when it is done again', () => {
    fc.assert(
      fc.property(anyPreset, anyPreset, (previous, next) => {
        const kept = keepLastGood(previous, next);
        expect(keepLastGood(previous, kept)).toEqual(kept);
        expect(keepLastGood(kept, next)).toEqual(kept);
      }),
    );
  });

  it('neither invents a section nor loses one', () => {
    fc.assert(
      fc.property(anyPreset, anyPreset, (previous, next) => {
        expect(namesOf(keepLastGood(previous, next))).toEqual(namesOf(next));
      }),
    );
  });

  it('takes a good file as it is', () => {
    const isGood = ({ sections, globalProblems }: Preset): boolean =>
      globalProblems.length === 0 && sections.every(({ problems }) => problems.length === 0);
    const goodPreset = wellFormed.map((model) => parse(written(model))).filter(isGood);
    fc.assert(
      fc.property(anyPreset, goodPreset, (previous, next) => {
        expect(keepLastGood(previous, next)).toEqual(next);
      }),
    );
  });

  it('serves every model that was served and still has a section, and marks exactly those that are broken now', () => {
    fc.assert(
      fc.property(anyPreset, anyPreset, (previous, next) => {
        const served = new Map(previous.sections.map((section) => [section.name, section]));
        for (const [index, kept] of keepLastGood(previous, next).sections.entries()) {
          const now = next.sections[index];
          const before = served.get(kept.name);
          const isKept = before?.problems.length === 0 && now?.problems.length !== 0;
          expect(kept.stale !== undefined).toBe(isKept);
          expect(kept.values).toEqual((isKept ? before : now)?.values);
          expect(kept.problems).toEqual(isKept ? [] : now?.problems);
        }
      }),
    );
  });

  it('of a file that can not be read keeps everything, also when it stays so', () => {
    fc.assert(
      fc.property(anyPreset, (previous) => {
        const kept = unreadablePreset(previous, 'gone');
        expect(unreadablePreset(kept, 'gone')).toEqual(kept);
        expect(kept.sections.map(({ name: id, values, problems }) => ({ id, values, problems }))).toEqual(
          previous.sections.map(({ name: id, values, problems }) => ({ id, values, problems })),
        );
        expect(kept.global).toEqual(previous.global);
        expect(keepLastGood(kept, previous)).toEqual(keepLastGood(previous, previous));
      }),
    );
  });
});
