import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { tempDir } from '../../../helpers/temp-dir.js';

const source = fileURLToPath(new URL('../../../../src', import.meta.url));

/**
 * The facts store and its worker compiled from the sources as they are now, because threads run no TypeScript on the
 * oldest Node we support, and `dist/` may be older than the sources.
 *
 * @returns the directory of the compiled `src/models/gguf`
 */
export function compileFacts(): string {
  const target = tempDir();
  writeFileSync(join(target, 'package.json'), '{"type":"module"}');
  const done = new Set<string>();
  for (const entry of ['facts-store.ts', 'facts-worker.ts'])
    compile(join(source, 'models/gguf', entry), target, done);
  return join(target, 'models/gguf');
}

/** Compiles `file` and all of ours that it imports. */
function compile(file: string, target: string, done: Set<string>): void {
  if (done.has(file)) return;
  done.add(file);
  const { outputText } = ts.transpileModule(readFileSync(file, 'utf8'), {
    compilerOptions: {
      module: ts.ModuleKind.ESNext,
      target: ts.ScriptTarget.ES2023,
      verbatimModuleSyntax: true,
    },
  });
  const compiled = join(target, relative(source, file)).replace(/\.ts$/, '.js');
  mkdirSync(dirname(compiled), { recursive: true });
  writeFileSync(compiled, outputText);
  for (const { fileName } of ts.preProcessFile(outputText, true, true).importedFiles) {
    if (!fileName.startsWith('.')) continue;
    compile(resolve(dirname(file), fileName.replace(/\.js$/, '.ts')), target, done);
  }
}
