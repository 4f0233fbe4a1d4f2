import { join } from 'node:path';
import { expect, it } from 'vitest';
import { fileProblems } from '../../../../src/models/presets/option-files.js';
import { optionReader } from '../../../../src/models/option-reader.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { table, values } from '../help-table.js';
import { writeFile } from '../tree.js';

const read = optionReader(table);

async function problemsOf(
  own: Readonly<Record<string, string>>,
  inherited: Readonly<Record<string, string>> = {},
): Promise<string[]> {
  const all = new Map([...values(inherited), ...values(own)]);
  const problems = await fileProblems(values(own), all, read);
  return problems.map(({ option }) => option.key);
}

it.each([
  ['model', 'hf-repo'],
  ['model', 'model-url'],
  ['model', 'docker-repo'],
  ['mmproj', 'mmproj-url'],
  ['model-draft', 'hf-repo-draft'],
])('%s names no file that must be there where %s says what it is', async (key, other) => {
  expect(await problemsOf({ [key]: 'none.gguf' })).toEqual([key]);
  expect(await problemsOf({ [key]: 'none.gguf', [other]: 'x/y' })).toEqual([]);
  expect(await problemsOf({ [key]: 'none.gguf' }, { [other]: 'x/y' })).toEqual([]);
});

it('an option that is empty names nothing, and one that is inherited is not looked at again', async () => {
  expect(await problemsOf({ mmproj: '', lora: '' }, { 'grammar-file': 'none.gbnf' })).toEqual([]);
});

it('a list can have quoted names with commas in them, as llama-server reads it', async () => {
  const directory = tempDir();
  const file = writeFile(join(directory, 'a,b.gguf'));
  expect(await problemsOf({ lora: `"${file}"` })).toEqual([]);
  expect(await problemsOf({ lora: file })).toEqual(['lora', 'lora']);
});

it('a device or a pipe is a file that can be read, where text is expected', async () => {
  expect(await problemsOf({ 'grammar-file': '/dev/null' })).toEqual([]);
});
