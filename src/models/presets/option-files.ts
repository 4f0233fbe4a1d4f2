import { access, constants, stat } from 'node:fs/promises';
import { isAbsolute, resolve } from 'node:path';
import type { Option, OptionValues } from '../../config/option-table.js';
import { splitAtCommas } from '../../config/setting-kinds.js';
import { failureCode } from '../disk/directory.js';
import { failureProblem, GgufChecks } from '../gguf/gguf-file.js';
import type { OptionReader } from '../option-reader.js';

type Kind = 'gguf' | 'text' | 'directory';

/** What the value of an option names that a child opens at its start, and ends if it cannot. */
interface FileOption {
  readonly name: string;
  readonly kind: Kind;
  /** `scaled` is a list of `FILE:SCALE`. */
  readonly form: 'single' | 'list' | 'scaled';
  /** With one of these the value says where a download goes, or which file of a repository is meant. */
  readonly unless?: readonly string[];
}

const FILE_OPTIONS: readonly FileOption[] = [
  { name: 'model', kind: 'gguf', form: 'single', unless: ['hf-repo', 'model-url', 'docker-repo'] },
  { name: 'mmproj', kind: 'gguf', form: 'single', unless: ['mmproj-url'] },
  { name: 'model-draft', kind: 'gguf', form: 'single', unless: ['hf-repo-draft'] },
  { name: 'lora', kind: 'gguf', form: 'list' },
  { name: 'lora-scaled', kind: 'gguf', form: 'scaled' },
  { name: 'control-vector', kind: 'gguf', form: 'list' },
  { name: 'control-vector-scaled', kind: 'gguf', form: 'scaled' },
  { name: 'chat-template-file', kind: 'text', form: 'single' },
  { name: 'grammar-file', kind: 'text', form: 'single' },
  { name: 'json-schema-file', kind: 'text', form: 'single' },
  { name: 'lookup-cache-static', kind: 'text', form: 'single' },
  { name: 'mcp-servers-config', kind: 'text', form: 'single' },
  { name: 'ui-config-file', kind: 'text', form: 'single' },
  { name: 'slot-save-path', kind: 'directory', form: 'single' },
  { name: 'media-path', kind: 'directory', form: 'single' },
];

const REMEDIES: Readonly<Record<Kind, string>> = {
  gguf: 'name a GGUF file that is there',
  text: 'name a file that can be read',
  directory: 'create it, or name another directory',
};

/** A problem of a file that `option` names, as a sentence with a remedy. */
export interface FileProblem {
  readonly option: Option;
  readonly message: string;
}

/**
 * What is wrong with the files that `own` options name. Only looks, and never rejects.
 *
 * @param all the same options with all that they inherit
 */
export async function fileProblems(
  own: OptionValues,
  all: OptionValues,
  read: OptionReader,
): Promise<FileProblem[]> {
  const found = FILE_OPTIONS.map(async ({ name, kind, form, unless = [] }): Promise<FileProblem[]> => {
    const option = read.find(name);
    const value = read.get(own, name);
    if (option === undefined || value === undefined) return [];
    if (unless.some((other) => read.get(all, other) !== undefined)) return [];
    const messages = await Promise.all(itemsOf(value, form).map((item) => itemProblem(item, kind, form)));
    return messages.flatMap((message) =>
      message === undefined ? [] : [{ option, message: `${option.key}: ${message}` }],
    );
  });
  return (await Promise.all(found)).flat();
}

function itemsOf(value: string, form: FileOption['form']): readonly string[] {
  return form === 'single' ? [value] : splitAtCommas(value);
}

async function itemProblem(item: string, kind: Kind, form: FileOption['form']): Promise<string | undefined> {
  if (form !== 'scaled') return await pathProblem(item, kind);
  const [path = '', scale, ...more] = item.split(':');
  if (scale === undefined || more.length > 0) return `'${item}' is not of the form FILE:SCALE`;
  return await pathProblem(path, kind);
}

async function pathProblem(path: string, kind: Kind): Promise<string | undefined> {
  const problem = kind === 'gguf' ? await ggufProblem(path) : await plainProblem(path, kind);
  return problem === undefined ? undefined : `${problem}; ${remedyFor(path, kind)}`;
}

async function ggufProblem(path: string): Promise<string | undefined> {
  const { problem } = await new GgufChecks().check(path);
  return problem;
}

async function plainProblem(path: string, kind: 'text' | 'directory'): Promise<string | undefined> {
  try {
    const isDirectory = (await stat(path)).isDirectory();
    if (isDirectory !== (kind === 'directory')) return `'${path}' is ${isDirectory ? 'a' : 'no'} directory`;
    await access(path, constants.R_OK);
    return undefined;
  } catch (error) {
    return `'${path}' ${await failureProblem(path, failureCode(error))}`;
  }
}

function remedyFor(path: string, kind: Kind): string {
  if (path.startsWith('~')) return "'~' means nothing here, write the path out";
  if (isAbsolute(path)) return REMEDIES[kind];
  return `a relative path starts at the working directory, so that this one is '${resolve(path)}'`;
}
